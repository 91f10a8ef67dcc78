"""The ONNX Runtime engine of a quantization, of whichever kind of model."""

from __future__ import annotations

from pathlib import Path

from ...graph.sites import load_sites
from ...workspace.facts import Exported
from ...workspace.stage import Reporter
from ..facts import EngineRow
from .build import build_engine
from .generator import build_generator_engine


def write_engine(
    model: Exported, source: Path, calibration: Path, folder: Path, reporter: Reporter
) -> tuple[EngineRow, ...]:
    """Rewrite the Q/DQ graphs of `source` into `folder`, checked on samples of `calibration`.

    Raises:
        BuildError: the engine is further from its Q/DQ graphs than rounding explains.
    """
    samples, statistics = calibration / "samples", calibration / "statistics.safetensors"
    progress = reporter.progress
    if model.kind == "generator":
        rows = build_generator_engine(
            source, model.folder, samples, statistics, folder, progress=progress
        )
    else:
        graphs = load_sites(model.folder).graphs
        rows = build_engine(
            source, model.folder, samples, statistics, folder, graphs, progress=progress
        )
    return tuple(rows)
