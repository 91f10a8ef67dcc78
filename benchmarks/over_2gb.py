"""Export a graph of opset 17 with 2.2 GB of weights, more than a Protobuf message holds.

python -m arvg_trt.benchmarks.over_2gb FOLDER

The weights are a sparse file of zeros. Prints seconds and peak memory of the export, which has to
convert the opset of the graph alone. FOLDER has to hold 2.3 GB more; what is written there stays.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from .common import run_measured

ROWS, COLUMNS, BYTES = 16384, 32768, 4


def outside(name: str, shape: tuple[int, int], offset: int) -> onnx.TensorProto:
    """Return a weight that lies in `big.data`."""
    made = TensorProto(
        name=name,
        data_type=TensorProto.FLOAT,
        dims=shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (
        ("location", "big.data"),
        ("offset", offset),
        ("length", shape[0] * shape[1] * BYTES),
    ):
        made.external_data.add(key=key, value=str(value))
    return made


def write(folder: Path) -> Path:
    """Write x [n, ROWS] -> y [n, 16], from two products; one has the large weight."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "big.data").open("wb") as stream:
        stream.truncate(ROWS * COLUMNS * BYTES + (1 << 20))
        numbers = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
        stream.write(numbers.tobytes())
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[1]),
            helper.make_node("MatMul", ["x", "w2"], ["b"]),
            helper.make_node("Add", ["b", "m"], ["y"]),
        ],
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [outside("w1", (ROWS, COLUMNS), 0), outside("w2", (ROWS, 16), 0)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write the graph into FOLDER and export it."""
    path = write(folder)
    arguments = ["arvg_trt", "export", "onnx", str(folder / "ws"), "--graph", str(path)]
    found = run_measured(arguments, folder)
    click.echo(f"exported in {found.seconds:.1f} s, peak {found.peak_mb:,.0f} MB")


if __name__ == "__main__":
    main()
