"""Take a graph with more weights than a Protobuf message holds, 2.15 GB, through every stage.

python -m arvg_trt.benchmarks.over_2gb FOLDER [--smoothing 0]

The opset is 17, so that the export has to convert that of the graph alone, and one product has
nearly all weights. They are a file of zeros but for its first 16 KB, which takes no disk; every
stage works on all of it. FOLDER has to hold 6 GB more; what is written there stays. Each stage is a
process of its own, whose peak is VmHWM: pages of mapped weights count, and can be dropped.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from .common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    run_measured,
    source_commit,
    write_results,
)

SAMPLES = 4
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


def stages(folder: Path, smoothing: str) -> dict[str, list[str]]:
    """Return the words of each stage's command."""
    workspace, feeds = str(folder / "ws"), str(folder / "feeds.npz")
    rows = np.random.default_rng(1).standard_normal((SAMPLES, ROWS)).astype(np.float32)
    np.savez(feeds, x=rows)
    return {
        "export": ["export", "onnx", workspace, "--graph", str(write(folder))],
        "calibrate": ["calibrate", workspace, "--feeds", feeds, "--samples", str(SAMPLES)],
        "quantize": ["quantize", workspace, "--smoothing", smoothing],
        "build": ["build", workspace, "--backend", "onnxruntime"],
        "validate": ["validate", workspace, "--feeds", feeds, "--rounds", "1"],
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--smoothing", default="search", show_default=True, help="Of `quantize`.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(folder: Path, smoothing: str, output: Path) -> None:
    """Run every stage in FOLDER, and write over_2gb.md and .json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = (ROWS * COLUMNS + ROWS * 16) * BYTES
    rows = []
    for stage, words in stages(folder, smoothing).items():
        found = run_measured(["arvg_trt", *words], folder)
        rows.append((stage, f"{found.seconds:.0f}", f"{found.peak_mb / 1e3:.1f}"))
        click.echo(f"{stage}: {found.seconds:.1f} s, peak {found.peak_mb:,.0f} MB")
    text = f"""# A graph with {weights / 1e9:.2f} GB of weights

{(__doc__ or "").partition("0]")[2].strip()}

`quantize --smoothing {smoothing}`, W8A8, {SAMPLES} samples. Commit {source_commit()}.

{markdown_table(("stage", "s", "peak, GB"), rows)}

{environment_line(environment(0))}
"""
    values = {"environment": environment(0), "smoothing": smoothing, "rows": rows}
    write_results("over_2gb", output, text, values)


if __name__ == "__main__":
    main()
