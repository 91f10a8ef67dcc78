"""How far quantized graphs are from the exported ones on recorded runs, each fed what it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import CalibrationError
from ..runtime.feeds import load_sample, sample_files
from ..runtime.sessions.onnxruntime import reference_session


def run_decibels(
    export: Path, folder: Path, samples: Path, graphs: Sequence[str]
) -> dict[str, float]:
    """SQNR in dB of every output over all runs in `samples`, by `GRAPH/OUTPUT`; equal ones: inf.

    Raises:
        CalibrationError: no run of a graph.
    """
    found: dict[str, float] = {}
    for graph in graphs:
        files = sample_files(samples, graph)
        if not files:
            raise CalibrationError(f"no run of {graph}.onnx", where=str(samples))
        wanted, made = (reference_session(path / f"{graph}.onnx") for path in (export, folder))
        signal, noise = dict.fromkeys(wanted.outputs, 0.0), dict.fromkeys(wanted.outputs, 0.0)
        for path in files:
            feeds = load_sample(path, wanted.inputs)
            outputs = made.run(feeds)
            for name, values in wanted.run(feeds).items():
                wide = values.astype(np.float64)
                signal[name] += float(np.square(wide).sum())
                noise[name] += float(np.square(outputs[name].astype(np.float64) - wide).sum())
        for name in wanted.outputs:
            ratio = signal[name] / noise[name] if noise[name] else math.inf
            found[f"{graph}/{name}"] = 10 * math.log10(ratio)
    return found
