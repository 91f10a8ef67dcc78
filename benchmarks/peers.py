"""Quantize one ONNX graph by another tool; run as a file, in the other tool's environment.

python benchmarks/peers.py onnxruntime encoder.onnx feeds.npy out/encoder.onnx

Needs numpy, click, onnx and the tool alone; it imports nothing of this package.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Give one row of an array at a time."""

    def __init__(self, name: str, rows: np.ndarray[Any, Any]) -> None:
        self.name = name
        self.rows = rows
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.rows)

    def get_first(self) -> dict[str, Any]:
        return {self.name: self.rows[:1]}

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.left, None)
        return None if row is None else {self.name: row[None]}


def pre_process(graph: Path, prepared: Path) -> None:
    """Prepare a graph as documented; without symbolic shapes where ONNX Runtime cannot infer them.

    Its inference gives up on graphs that compute shapes, with a plain Exception, and has an option
    to leave it out, which then wants the weights inside the graph.
    """
    try:
        quant_pre_process(graph, prepared)
    except Exception as error:
        if "symbolic shape inference" not in str(error):
            raise
        click.echo(f"{graph.name}: {error}: left out", err=True)
        whole = prepared.with_name("whole.onnx")
        onnx.save(onnx.load(graph), whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)


def onnxruntime(graph: Path, feeds: Feeds, output: Path, only: str, exclude: Sequence[str]) -> str:
    """Quantize in its documented way: pre-process, then QDQ with INT8 and MinMax on both sides.

    UINT8 activations where one kind of node is quantized: ONNX Runtime 1.31 cannot load its own
    INT8 graph then ("output_dtype INT8 does not match y_zero_point type UINT8").
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        pre_process(graph, prepared)
        quantize_static(
            prepared,
            output,
            feeds,
            op_types_to_quantize=[only] if only else None,
            nodes_to_exclude=list(exclude),
            per_channel=True,
            activation_type=QuantType.QUInt8 if only else QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    return str(importlib.import_module("onnxruntime").__version__)


def modelopt(graph: Path, feeds: Feeds, output: Path, only: str, exclude: Sequence[str]) -> str:
    """Quantize by its defaults (entropy), but a float32 float side, since it runs on a CPU."""
    quantization = importlib.import_module("modelopt.onnx.quantization")
    quantization.quantize(
        str(graph),
        quantize_mode="int8",
        calibration_data_reader=feeds,
        calibration_eps=["cpu"],
        op_types_to_quantize=[only] if only else None,
        nodes_to_exclude=list(exclude) or None,
        high_precision_dtype="fp32",
        output_path=str(output),
    )
    return str(importlib.import_module("modelopt").__version__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tool", type=click.Choice(["onnxruntime", "modelopt"]))
@click.argument("graph", type=click.Path(path_type=Path, exists=True))
@click.argument("feeds", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--input-name", required=True, help="The graph's input.")
@click.option("--only", default="", help="Quantize this kind of node alone.")
@click.option("--exclude", multiple=True, help="Name of a node to leave out; repeatable.")
def main(
    tool: str,
    graph: Path,
    feeds: Path,
    output: Path,
    input_name: str,
    only: str,
    exclude: Sequence[str],
) -> None:
    """Quantize GRAPH, calibrated on the rows of FEEDS (.npy), and print the tool's version."""
    output.parent.mkdir(parents=True, exist_ok=True)
    run = {"onnxruntime": onnxruntime, "modelopt": modelopt}[tool]
    version = run(graph, Feeds(input_name, np.load(feeds)), output, only, exclude)
    output.with_suffix(".json").write_text(json.dumps({"version": version}))


if __name__ == "__main__":
    main()
