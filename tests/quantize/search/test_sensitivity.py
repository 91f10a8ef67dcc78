"""One session with replaceable weights and toggled roundings, against graphs really changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax, softmax

from arvg_trt.calibrate.observers.smoothed import SmoothedInput
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.qparams import QParams
from arvg_trt.quantize.search.sensitivity import (
    PerturbedChain,
    PerturbedGraph,
    RoundedInput,
    divergence,
    squared_distance,
)
from arvg_trt.runtime.sessions.open import open_session
from arvg_trt.runtime.sessions.session import Session
from arvg_trt.samples.files import sample_batches, sample_files

from ...families.generators import TinyGenerator, activations
from ...families.tiny import TinyExport

RNG = np.random.default_rng(11)


def weighted(sites: tuple[Site, ...]) -> list[Site]:
    return [s for s in sites if s.weight and s.excluded is None]


def replaced(folder: Path, graph: str, weights: dict[str, np.ndarray]) -> Session:
    """A session of the graph whose initializers were replaced in the file."""
    model = onnx.load(folder / f"{graph}.onnx")
    for name, value in weights.items():
        for held in model.graph.initializer:
            if held.name == name:
                held.CopyFrom(numpy_helper.from_array(value, name))
    path = folder / f"{graph}.onnx"
    return open_session(path, optimized=False, graph=model.SerializeToString())


def image_batches(folder: Path) -> list[dict[str, np.ndarray]]:
    return [arrays for _, arrays in sample_batches(sample_files(folder), 2)]


def test_weights_of_a_run_are_those_it_is_fed(tiny_di: TinyExport, samples: Path) -> None:
    sites = weighted(tiny_di.sites.of_graph("encoder"))
    probe = PerturbedGraph(tiny_di.folder / "encoder.onnx", sites, last=None)
    chosen = {s.name: probe.weight(s.name) * np.float32(0.9) for s in sites[1:3]}
    arrays = image_batches(samples)[0]
    found = probe.run(arrays, probe.feeds(chosen), {})
    changed = {str(s.weight): chosen[s.name] for s in sites[1:3]}
    wanted = replaced(tiny_di.folder, "encoder", changed).run(arrays)
    np.testing.assert_allclose(found["latent"], wanted["latent"], atol=2e-5)
    plain = probe.run(arrays, {}, {})
    assert np.abs(plain["latent"] - wanted["latent"]).max() > 1e-2


def test_weights_of_linears_are_fed_output_channel_first(tiny_var: TinyGenerator) -> None:
    sites = weighted(tiny_var.full_sites)
    probe = PerturbedGraph(tiny_var.folder / "full.onnx", sites)
    site = next(s for s in sites if s.weight_shape[0] != s.weight_shape[1])
    weight = probe.weight(site.name)
    assert weight.shape == site.weight_shape[::-1]
    changed = weight + RNG.normal(0, 0.05, weight.shape).astype(np.float32)
    found = probe.run(tiny_var.feeds(), probe.feeds({site.name: changed}), {})
    session = replaced(tiny_var.folder, "full", {str(site.weight): changed.T})
    wanted = session.run(tiny_var.feeds())
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=2e-5)


def test_a_switched_input_is_what_its_grid_makes_of_it(tiny_var: TinyGenerator) -> None:
    """x' = s (d (clip(round((x / s - p) / d)) ) + p), position by position, in float64."""
    sites = weighted(tiny_var.full_sites)
    site = next(s for s in sites if s.role == "fc1")
    x = activations(tiny_var.folder / "full.onnx", tiny_var.feeds(), [site.input])[site.input]
    scale, shift = RNG.uniform(0.5, 2, x.shape[2]), RNG.normal(0, 0.1, x.shape[2])
    steps, lows = RNG.uniform(0.05, 0.2, x.shape[1]), RNG.integers(-2, 3, x.shape[1])
    view = SmoothedInput(site.input, 2, 1, scale=scale, shift=shift)
    rounded = {site.name: RoundedInput(view, QParams.from_shift(steps, lows, 4))}
    probe = PerturbedGraph(tiny_var.folder / "full.onnx", sites, rounded)
    whole = np.round((x / scale - shift) / steps[:, None])
    points = np.clip(whole, lows[:, None] - 8, lows[:, None] + 7)
    wanted = (points * steps[:, None] + shift) * scale
    plain = probe.run(tiny_var.feeds(), {}, {})
    found = probe.run(tiny_var.feeds(), probe.feeds({}, [site.name]), {})
    assert squared_distance({"logits": plain["logits"]}, found) > 1e-6
    model = onnx.load(tiny_var.folder / "full.onnx")
    for node in model.graph.node:  # the site's product reads what it is fed
        if node.name == site.node:
            node.input[0] = "given"
    shape = onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, wanted.shape)
    model.graph.input.append(shape)
    session = open_session(
        tiny_var.folder / "full.onnx", optimized=False, graph=model.SerializeToString()
    )
    given = session.run({**tiny_var.feeds(), "given": wanted.astype(np.float32)})
    np.testing.assert_allclose(found["logits"], given["logits"], atol=1e-3)


def test_an_unswitched_probe_is_the_graph(tiny_var: TinyGenerator) -> None:
    site = next(s for s in weighted(tiny_var.full_sites) if s.role == "qkv")
    grid = QParams.from_shift(np.array([0.5]), np.array([0]), 4)
    probe = PerturbedGraph(
        tiny_var.folder / "full.onnx",
        [site],
        {site.name: RoundedInput(SmoothedInput(site.input, 2), grid)},
    )
    found = probe.run(tiny_var.feeds(), {}, {})
    plain = open_session(tiny_var.folder / "full.onnx", optimized=False)
    np.testing.assert_allclose(found["logits"], plain.run(tiny_var.feeds())["logits"], atol=1e-5)


def test_an_encoder_is_judged_before_its_codes_and_a_chain_at_its_end(
    tiny_di: TinyExport, samples: Path
) -> None:
    probes = {}
    for graph in ("encoder", "decoder"):
        sites = tiny_di.sites.of_graph(graph)
        weights = [s for s in sites if s.weight]
        path = tiny_di.folder / f"{graph}.onnx"
        probes[graph] = PerturbedGraph(path, weighted(sites), last=weights[-1])
    assert probes["encoder"].targets == ("latent",) and probes["decoder"].targets == ("image",)
    chain = PerturbedChain(probes, image_batches(samples))
    site = weighted(tiny_di.sites.of_graph("encoder"))[0]
    changes = probes["encoder"].feeds({site.name: probes["encoder"].weight(site.name) * 0.8})
    assert chain.own_loss("encoder", {}) == 0 == chain.end_loss({})
    own, end = chain.own_loss("encoder", changes), chain.end_loss({"encoder": changes})
    wanted_own, wanted_end = [], []
    for arrays in image_batches(samples):
        plain = probes["encoder"].run(arrays, {}, {})
        moved = probes["encoder"].run(arrays, changes, {})
        images = [probes["decoder"].run(arrays, {}, made)["image"] for made in (plain, moved)]
        for pair, found in (
            ((plain["latent"], moved["latent"]), wanted_own),
            (images, wanted_end),
        ):
            one, other = (v.astype(np.float64) for v in pair)
            found.append(np.square(one - other).mean() / one.var())
    assert own == pytest.approx(np.mean(wanted_own)) and own > 1e-5
    assert end == pytest.approx(np.mean(wanted_end)) and end > 1e-5


def test_folder_of_the_same_graphs_loses_nothing(tiny_di: TinyExport, samples: Path) -> None:
    probes = {g: PerturbedGraph(tiny_di.folder / f"{g}.onnx", []) for g in ("encoder", "decoder")}
    chain = PerturbedChain(probes, image_batches(samples))
    assert chain.end_loss_of(tiny_di.folder) < 1e-8


def test_divergence_is_the_mean_kl_of_the_distributions() -> None:
    wanted, found = (RNG.normal(0, 3, (2, 5, 7)).astype(np.float32) for _ in range(2))
    p = softmax(wanted.astype(np.float64), axis=-1)
    logs = (log_softmax(v.astype(np.float64), axis=-1) for v in (wanted, found))
    expected = (p * np.subtract(*logs)).sum(axis=-1).mean()
    assert divergence({"logits": wanted}, {"logits": found}) == pytest.approx(expected, rel=1e-9)
