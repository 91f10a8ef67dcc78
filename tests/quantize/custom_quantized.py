"""A small graph of a user's own, calibrated and quantized in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.sites import SiteMap
from arvg_trt.numerics.scheme import Plan
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.quantize.groups import find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.run import quantize_model
from arvg_trt.quantize.scaling.choose_per_tensor import search_ways
from arvg_trt.quantize.scaling.predicted import Way
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import save_sample

from ..families.custom.models import small_graph
from ..families.tiny import silent

Array = NDArray[np.float32]


@dataclass(frozen=True)
class CustomGraph:
    """A file in canonical form as `g.onnx`, its sites, and samples x saved one row each."""

    folder: Path
    site_map: SiteMap
    samples: Path

    def run(self, x: Array) -> NDArray[np.float64]:
        return run(self.folder, x)

    def quantize(
        self, folder: Path, plan: Plan | None = None, **options: object
    ) -> tuple[Plan, list[SiteRow]]:
        """Quantize by options, or by a plan that was made before."""
        folder.mkdir()
        chosen = QuantizeOptions(**options)  # type: ignore[arg-type]
        return quantize_model(
            self.calibration(),
            folder,
            self.site_map,
            check_plan(plan or make_plan(self.site_map, chosen), self.site_map),
            self.calibration().channel_ranges(self.site_map),
            chosen,
            shared=False,
        )

    def calibration(self, batch_size: int = 16) -> CalibrationRun:
        """Return the run of all samples."""
        return CalibrationRun(self.folder, self.samples, self.site_map.graphs, batch_size, silent)

    def search(self, **options: object) -> dict[str, Way]:
        """Return the ways that the search finds for the inputs of a plan by these options."""
        wanted = QuantizeOptions(**options)  # type: ignore[arg-type]
        entries = check_plan(make_plan(self.site_map, wanted), self.site_map)
        run = self.calibration(8)
        statistics = run.channel_ranges(self.site_map)
        graph = load_graph(self.folder / "g.onnx").graph
        groups = find_groups(graph, self.site_map.sites, entries, statistics)
        return search_ways(run, self.site_map, {"g": graph}, groups, statistics, wanted)

    def sqnr(self, folder: Path, x: Array, **options: object) -> float:
        """In dB of y on `x`, quantized into a new `folder`."""
        self.quantize(folder, **options)
        return decibel(run(folder, x), self.run(x))


def custom_graph(path: Path, x: Array) -> CustomGraph:
    """Return an ONNX file with an input `x`, calibrated on the rows of `x`."""
    folder, samples = path.parent / "export", path.parent / "samples"
    folder.mkdir()
    samples.mkdir()
    model = read_custom_graph(path)
    site_map = SiteMap(sites=find_custom_sites(model.graph, "g"), graphs=("g",))
    ir.save(model, folder / "g.onnx")
    for k, row in enumerate(x):
        save_sample({"x": row[None]}, samples, k)
    return CustomGraph(folder, site_map, samples)


def low_rank_graph(folder: Path) -> tuple[CustomGraph, Array]:
    """A linear whose 32 inputs have four degrees of freedom, which GPTQ makes the most of.

    With 24 samples, and 100 others.
    """
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 1, (4, 32))

    def drawn(count: int) -> Array:
        x = rng.normal(0, 1, (count, 16, 4)) @ mix + rng.normal(0, 0.05, (count, 16, 32))
        x[..., 5] *= 4
        return x.astype(np.float32)

    held = {"w": rng.normal(0, 0.2, (32, 16)).astype(np.float32)}
    product = [("MatMul", ["x", "w"], "y", {})]
    path = small_graph(folder / "g.onnx", product, held, x=("n", 16, 32))  # type: ignore[arg-type]
    return custom_graph(path, drawn(24)), drawn(100)


def run(folder: Path, x: Array) -> NDArray[np.float64]:
    return reference_session(folder / "g.onnx").run({"x": x}, ["y"])["y"].astype(np.float64)


def decibel(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    noise = max(float(np.sum(np.square(found - wanted))), 1e-300)
    return float(10 * np.log10(np.sum(np.square(wanted)) / noise))
