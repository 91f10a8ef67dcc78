"""Quantize a generator's graph by other tools' INT8, on the same samples, for the ablation."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from safetensors.torch import load_file

from ...families.var.model import VarTransformer
from ...runtime.generator import TEACHER_FORCED
from ...samples.files import load_sample, sample_files
from ..planted import CONFIG
from .measure import Feeds, Model, graph_model

STATIC, DYNAMIC = PEERS = ("onnxruntime, static", "torchao, dynamic per token")


class SampleReader(CalibrationDataReader):  # type: ignore[misc]
    """Give saved samples to a calibrator, one at a time."""

    def __init__(self, samples: Path) -> None:
        self._left: Iterator[Path] = iter(sample_files(samples))

    def get_next(self) -> dict[str, Any] | None:
        path = next(self._left, None)
        return None if path is None else load_sample(path)


def onnxruntime_static(export: Path, samples: Path, folder: Path) -> Model:
    """Quantize all MatMul and Gemm by ONNX Runtime's static Q/DQ with MinMax, weights per channel.

    Products of two activations are left out, as ours are.
    """
    quantize_static(
        str(export / f"{TEACHER_FORCED}.onnx"),
        str(folder / f"{TEACHER_FORCED}.onnx"),
        SampleReader(samples),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )
    return graph_model(folder)


def torchao_dynamic(checkpoint: Path) -> Model | None:
    """Quantize the planted VAR by torchao: INT8 weights, a scale a token found while it runs.

    Returns None, with a line on stderr, where torchao is not installed.
    """
    try:
        quantization = importlib.import_module("torchao.quantization")
    except ModuleNotFoundError:
        click.echo("torchao is not installed: left out (pip install torchao)", err=True)
        return None
    model = VarTransformer(CONFIG).eval().requires_grad_(False)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=True)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())

    def run(feeds: Feeds) -> Mapping[str, Any]:
        with torch.no_grad():
            tensors = (torch.from_numpy(np.asarray(feeds[k])) for k in ("labels", "features"))
            return {"logits": model(*tensors).numpy()}

    return run


def peers(
    export: Path, samples: Path, checkpoint: Path | None
) -> Iterator[tuple[str, Callable[[], Model | None]]]:
    """Yield names, and what makes each; torchao takes the checkpoint of the planted VAR."""
    with tempfile.TemporaryDirectory() as scratch:
        yield STATIC, lambda: onnxruntime_static(export, samples, Path(scratch))
        if checkpoint is not None:
            yield DYNAMIC, lambda: torchao_dynamic(checkpoint)
