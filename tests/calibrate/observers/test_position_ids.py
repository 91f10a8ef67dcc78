"""A tiny MAR, whose rows lie in another order in every sample: what is told by their places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.clip_error import Power
from arvg_trt.calibrate.observers.smoothed import plain_input
from arvg_trt.calibrate.statistics import (
    POSITION,
    TensorStats,
    load_statistics,
    merge,
    save_statistics,
)
from arvg_trt.families.mar.write import export_mar
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.sites import Site, SiteMap, by_input
from arvg_trt.numerics.qparams import QParams
from arvg_trt.quantize.fold import ChannelFold, fold_channels, folds_shift, holds_producer
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import GraphRun, load_sample, sample_files, save_sample

from ...families.generators import activations
from ...families.mar.models import SMALL, random_mar
from ...families.shared.models import exported_once
from ...families.tiny import silent

CONFIG = replace(SMALL, encoder_depth=1, decoder_depth=1, head_depth=1)
BUFFER, LENGTH = CONFIG.buffer, CONFIG.length
KNOWN = (0, 3, 15)
GRAPHS = ("pass", "denoise")


@dataclass(frozen=True)
class Source:
    folder: Path
    samples: Path
    site_map: SiteMap

    def sites(self, graph: str) -> list[Site]:
        return [s for s in self.site_map.of_graph(graph) if s.weight]

    def runs(self, graph: str) -> list[dict[str, np.ndarray]]:
        return [load_sample(path) for path in sample_files(self.samples, graph)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Passes of two rows with none, some and all but one token known; one run of the denoiser."""
    root = tmp_path_factory.mktemp("places")
    samples = root / "samples"
    samples.mkdir()
    graphs, sites = exported_once(
        tmp_path_factory,
        "mar",
        CONFIG,
        lambda weights, form: export_mar(random_mar(CONFIG), weights, {}),
    )
    rng = np.random.default_rng(7)
    for k, known in enumerate(KNOWN):
        feeds = {
            "labels": np.array([k, CONFIG.num_classes]),
            "tokens": rng.normal(0, 1, (2, known, CONFIG.latent_channels)).astype(np.float32),
            "position_ids": np.stack([rng.permutation(LENGTH) for _ in range(2)]),
        }
        save_sample(GraphRun("pass", feeds), samples, k)
    x = rng.normal(0, 1, (6, CONFIG.latent_channels)).astype(np.float32)
    condition = rng.normal(0, 1, (6, CONFIG.head_width)).astype(np.float32)
    feeds = {"x": x, "time": np.array([700]), "condition": condition}
    save_sample(GraphRun("denoise", feeds), samples, len(KNOWN))
    return Source(graphs, samples, SiteMap(sites=sites, graphs=GRAPHS))


def token_sites(source: Source) -> list[Site]:
    return [site for site in source.sites("pass") if site.knows_positions]


def places_of(site: Site, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The buffer, known tokens by their place, in the decoder unknown ones by theirs, L further.

    Behind the last attention only unknown ones are computed.
    """
    known = feeds["tokens"].shape[1]
    if site.name.startswith("decoder") and not site.name.endswith("qkv"):
        return feeds["position_ids"][:, known:]
    rows = []
    for order in feeds["position_ids"]:
        row = [*range(BUFFER), *(BUFFER + order[:known])]
        if site.name.startswith("decoder"):
            row += [*(BUFFER + LENGTH + order[known:])]
        rows.append(row)
    return np.array(rows)


def positions_of(site: Site) -> int:
    if site.name.startswith("encoder"):
        return BUFFER + LENGTH
    return BUFFER + 2 * LENGTH if site.name.endswith("qkv") else LENGTH


def seen_by_place(source: Source, site: Site) -> dict[int, np.ndarray]:
    """All values that the site's input has at each place, in float64."""
    found: dict[int, list[np.ndarray]] = {}
    for feeds in source.runs("pass"):
        x = activations(source.folder / "pass.onnx", feeds, [site.input])[site.input]
        places = places_of(site, feeds)
        for place, row in zip(places.ravel(), x.reshape(-1, x.shape[-1]), strict=True):
            found.setdefault(int(place), []).append(row)
    return {place: np.stack(rows) for place, rows in found.items()}


def passes(source: Source) -> CalibrationRun:
    return CalibrationRun(source.folder, source.samples, ("pass",), 1, silent)


def test_statistics_are_by_place_whatever_the_order(source: Source, tmp_path: Path) -> None:
    sites = source.sites("pass")
    found = CalibrationRun(
        source.folder, source.samples, (sites[0].graph,), 1, silent
    ).input_ranges(sites)
    save_statistics(found, tmp_path / "s")
    found = load_statistics(tmp_path / "s")
    assert len(token_sites(source)) == 8
    for site in token_sites(source):
        stats = found[f"{site.name}{POSITION}"]
        wanted = seen_by_place(source, site)
        assert len(stats.low) == positions_of(site)
        for place in range(len(stats.low)):
            if place not in wanted:
                assert stats.count[place] == 0 and stats.low[place] > stats.high[place]
                continue
            rows = wanted[place]
            assert stats.count[place] == rows.size
            near = {"rel": 1e-5, "abs": 1e-5 * np.abs(rows).max()}
            assert stats.low[place] == pytest.approx(rows.min(), **near)
            assert stats.high[place] == pytest.approx(rows.max(), **near)
            assert stats.square[place] == pytest.approx(np.square(rows).sum(), rel=1e-5)


def test_statistics_of_the_denoiser_are_by_parts_of_its_times(source: Source) -> None:
    sites = source.sites("denoise")
    found = CalibrationRun(
        source.folder, source.samples, (sites[0].graph,), 1, silent
    ).input_ranges(sites)
    (feeds,) = source.runs("denoise")
    seen = activations(source.folder / "denoise.onnx", feeds, [s.input for s in sites])
    for site in sites:
        x, stats = seen[site.input], found[f"{site.name}{POSITION}"]
        assert np.flatnonzero(stats.count).tolist() == [14]  # 700 of 1000 in 20 parts
        assert stats.count[14] == x.size and len(stats.count) == 20
        assert stats.low[14] == pytest.approx(x.min(), rel=1e-5)
        assert stats.square[14] == pytest.approx(np.square(x).sum(), rel=1e-5)


def test_before_the_first_token_there_are_none_to_observe(source: Source, tmp_path: Path) -> None:
    feeds = source.runs("pass")[0]
    assert feeds["tokens"].shape[1] == 0
    save_sample(GraphRun("pass", feeds), tmp_path, 0)
    found = CalibrationRun(
        source.folder, tmp_path, (source.sites("pass")[0].graph,), 1, silent
    ).input_ranges(source.sites("pass"))
    assert found["z_proj"].count == 0 and np.isinf(found["z_proj"].low).all()
    assert np.isfinite(found["decoder_embed"].low).all()


@pytest.mark.parametrize("powers", [(2,), (2, 4)])
@pytest.mark.parametrize("which", [0, -1], ids=["encoder", "unknown tokens"])
def test_errors_are_summed_by_place(source: Source, which: int, powers: tuple[Power, ...]) -> None:
    site = token_sites(source)[which]
    rng = np.random.default_rng(3)
    view = plain_input(site)
    token_scale = np.exp(rng.normal(0, 0.5, view.positions))
    view = replace(view, token_scale=token_scale)
    wanted = seen_by_place(source, site)
    step = 0.1 * np.exp(rng.normal(0, 0.3, view.positions))
    grid = QParams.from_shift(step, rng.integers(-3, 3, view.positions), 4)
    gains = np.linspace(0.5, 2, site.weight_shape[0])
    errors = passes(source).clip_errors({"k": view}, {"k": [grid]}, {"k": gains}, powers)["k"]
    assert tuple(errors) == powers
    for power, sums in errors.items():
        for place in range(view.positions):
            if place not in wanted:
                assert sums[0][place] == 0
                continue
            x = wanted[place] / token_scale[place]
            zero = 8 + grid.zero_point[place]
            codes = np.clip(np.rint(x / step[place]) + zero, 0, 15)
            error = ((codes - zero) * step[place] - x) * gains
            assert sums[0][place] == pytest.approx((error**power).sum(), rel=1e-4 * power)


def test_a_place_that_was_not_seen_gets_the_range_of_all() -> None:
    one = TensorStats(
        np.array([-1.0, np.inf]), np.array([2.0, -np.inf]), np.array([8.0, 0.0]), np.array([4, 0])
    )
    filled = one.filled()
    assert filled.low.tolist() == [-1, -1] and filled.high.tolist() == [2, 2]
    assert filled.mean_square.tolist() == [2, 2]
    other = TensorStats(
        np.array([-3.0, 0]), np.array([1.0, 5]), np.array([1.0, 9]), np.array([2, 2])
    )
    total = merge([{"x": one}, {"x": other}])["x"]
    assert total.low.tolist() == [-3, 0] and total.count.tolist() == [6, 2]
    assert total.filled() is total


def random_absorptions(source: Source) -> list[tuple[list[Site], ChannelFold]]:
    rng = np.random.default_rng(5)
    found = []
    for name in GRAPHS:
        graph = load_graph(source.folder / f"{name}.onnx").graph
        for sites in by_input(source.sites(name)).values():
            channels = sites[0].weight_shape[0]
            divides = holds_producer(graph, sites[0])
            scale, shift = np.exp(rng.normal(0, 0.7, channels)), rng.normal(0, 0.7, channels)
            subtracts = divides and folds_shift(sites[0])
            found.append((sites, ChannelFold(scale, shift, divides, subtracts)))
    return found


def test_absorbed_graphs_compute_what_they_did(source: Source, tmp_path: Path) -> None:
    """Norms of the transformers, modulations of the denoiser, Mul and Sub elsewhere."""
    folds = random_absorptions(source)
    free = {s.role for sites, a in folds if a.divides and a.subtracts for s in sites}
    assert free == {"qkv", "proj", "fc1", "head"}
    for graph in GRAPHS:
        model = load_graph(source.folder / f"{graph}.onnx")
        fold_channels(model.graph, source.site_map.of_graph(graph), folds)
        ir.save(model, tmp_path / f"{graph}.onnx", external_data=f"{graph}.data")
        for feeds in source.runs(graph):
            wanted, found = (
                reference_session(folder / f"{graph}.onnx").run(feeds)
                for folder in (source.folder, tmp_path)
            )
            for name, value in wanted.items():
                limit = 1e-5 * np.abs(value).max()
                np.testing.assert_allclose(found[name], value, atol=limit)
