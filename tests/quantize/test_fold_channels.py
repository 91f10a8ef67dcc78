"""Absorbed scales and shifts leave every graph of a generator computing what it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.families.par.config import ParConfig
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.sites import Site, SiteMap, by_input
from arvg_trt.quantize.fold import ChannelFold, fold_channels, folds_shift, holds_producer
from arvg_trt.runtime.sessions.open import reference_session

from ..families.generators import TinyGenerator, activations, full_logits, stepped_logits
from ..families.par.models import TinyPar
from ..families.shared.graphs import sites_of


def quantizable(sites: Sequence[Site]) -> list[Site]:
    """Those with a weight that the method does not leave out."""
    return [site for site in sites if site.weight is not None and site.excluded is None]


def random_absorptions(
    source: TinyGenerator, *, free: bool = True
) -> list[tuple[list[Site], ChannelFold]]:
    """Scales around 1 and shifts for every group; without `free` none goes into a producer."""
    rng = np.random.default_rng(5)
    graph = load_graph(source.folder / "full.onnx").graph
    found = []
    for sites in by_input(quantizable(source.full_sites)).values():
        channels = sites[0].weight_shape[0]
        divides = free and holds_producer(graph, sites[0])
        scale = np.exp(rng.normal(0, 0.7, channels))
        shift = rng.normal(0, 0.7, channels)
        found.append((sites, ChannelFold(scale, shift, divides, divides and folds_shift(sites[0]))))
    return found


def sharing_graphs(site_map: SiteMap) -> set[str]:
    """Graphs that have a site of a calibrated one, those among them."""
    names = {site.name for site in quantizable(site_map.calibrated.sites)}
    return {site.graph for site in site_map.sites if site.name in names}


def fold_all(source: TinyGenerator, folder: Path, *, free: bool = True) -> Path:
    folder.mkdir()
    for graph in sharing_graphs(source.site_map):
        model = load_graph(source.folder / f"{graph}.onnx")
        fold_channels(
            model.graph, source.site_map.of_graph(graph), random_absorptions(source, free=free)
        )
        ir.save(model, folder / f"{graph}.onnx", external_data=f"{graph}.data")
    return folder


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("free", [True, False], ids=["folded", "by Mul and Sub"])
def test_full_step_and_condition_compute_what_they_did(
    generator: TinyGenerator, tmp_path: Path, free: bool
) -> None:
    assert sharing_graphs(generator.site_map) == {"condition", "step", "full"}
    folder = fold_all(generator, tmp_path / "folded", free=free)
    close(full_logits(generator, folder), full_logits(generator, generator.folder))
    close(stepped_logits(generator, folder), stepped_logits(generator, generator.folder))


@pytest.mark.parametrize("free", [True, False], ids=["folded", "by Mul and Sub"])
def test_par_full_and_step_compute_what_they_did(
    tiny_par: TinyPar, tmp_path: Path, free: bool
) -> None:
    """Norms without a bias take scales alone, and values lie scaled in the caches."""
    graphs, config = tiny_par.folder, tiny_par.transformer.config
    sites = SiteMap(sites=sites_of(graphs, ("step", "full")), graphs=("full",))
    source = TinyGenerator("par", graphs, graphs, sites, ())
    assert sharing_graphs(source.site_map) == {"step", "full"}
    folder = fold_all(source, tmp_path / "folded", free=free)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, (3, config.length - config.group))
    feeds = {"labels": np.arange(3), "tokens": tokens}
    found, wanted = (
        reference_session(path / "full.onnx").run(feeds)["logits"] for path in (folder, graphs)
    )
    close(found, wanted)
    close(*(cached_logits(path, tokens, config) for path in (folder, graphs)))


def cached_logits(folder: Path, tokens: np.ndarray, config: ParConfig) -> np.ndarray:
    """Return the logits of tokens in three steps over caches of the folder's own."""
    step = reference_session(folder / "step.onnx")
    nothing = np.zeros((len(tokens), config.heads, 0, config.head_dim), np.float32)
    cache = {name: nothing for name in step.inputs if name.startswith("past_")}
    found = []
    for a, b in ((0, 1), (1, 3), (3, 8)):
        made = step.run({"tokens": tokens[:, a:b], "position_ids": np.arange(a, b), **cache})
        found.append(made.pop("logits"))
        cache = {name.replace("present_", "past_"): value for name, value in made.items()}
    return np.concatenate(found, axis=1)


def test_large_weights_are_folded_in_parts_as_the_whole(
    tiny_var: TinyGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole weights in float64, and once more times the scale, are four times as large."""
    whole = fold_all(tiny_var, tmp_path / "whole")
    monkeypatch.setattr("arvg_trt.numerics.parts.PART", 50)
    split = fold_all(tiny_var, tmp_path / "parts")
    for path in sorted(whole.iterdir()):
        assert path.read_bytes() == (split / path.name).read_bytes()


def test_site_inputs_are_scaled_and_shifted_without_a_node_more(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    folder = fold_all(tiny_var, tmp_path / "folded")
    chosen = random_absorptions(tiny_var)
    folded = [(sites, a) for sites, a in chosen if a.divides]
    assert {s.role for sites, _ in folded for s in sites} == {"qkv", "proj", "fc1", "head"}
    names = [sites[0].input for sites, _ in folded]
    before, after = (
        activations(path / "full.onnx", tiny_var.feeds(), names)
        for path in (tiny_var.folder, folder)
    )
    for sites, a in folded:
        close(after[sites[0].input], before[sites[0].input] / a.scale - a.shift)
    counts = [len(load_graph(p / "full.onnx").graph) for p in (tiny_var.folder, folder)]
    explicit = [a for _, a in chosen if not a.divides]
    assert counts[1] - counts[0] == 2 * len(explicit)
