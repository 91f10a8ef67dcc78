"""Folds of every producer through everything that may lie between it and a site.

The law: a folded FP32 graph, its fold taken back in front of the site, equals the unfolded one.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.graph.sites import FoldPart, ProducerFold, Site
from arvg_trt.quantize.fold_check import AppliedFold, failing_folds, on_arrays, tried_folds
from arvg_trt.runtime.sessions.open import reference_session

from .models import WIDTH, Node, positive, random, small_graph

W = WIDTH
TOKENS = ("n", 6, W)
IMAGE = ("n", W, 5, 4)
ROWS = ("n", W)
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "g": positive(3, W),
    "b": random(4, W),
    "gi": positive(3, W, 1, 1),
    "bi": random(4, 1, W, 1, 1),
    "mean": random(5, W),
    "var": positive(6, W),
    "v": random(2, W, W),
    "slope": np.float32([0.3]),
    "slopes": random(7, W),
    "slopes_i": random(7, W, 1, 1),
    "h": positive(8, W),
    "hi": positive(8, W, 1, 1),
}
# By name: nodes from `x` to `p`, and the shape of x.
PRODUCERS: dict[str, tuple[list[Node], tuple[object, ...]]] = {
    "LayerNorm": ([("LayerNormalization", ["x", "g", "b"], "p", {})], TOKENS),
    "LayerNorm without a bias": ([("LayerNormalization", ["x", "g"], "p", {})], TOKENS),
    "LayerNorm, then a bias": (
        [("LayerNormalization", ["x", "g", "b"], "q", {}), ("Add", ["q", "h"], "p", {})],
        TOKENS,
    ),
    "linear": ([("MatMul", ["x", "v"], "p", {})], TOKENS),
    "linear with a bias": (
        [("MatMul", ["x", "v"], "q", {}), ("Add", ["q", "b"], "p", {})],
        TOKENS,
    ),
    "Gemm": ([("Gemm", ["x", "v", "b"], "p", {"transB": 1})], ROWS),
    "affine": (
        [("Gelu", ["x"], "e", {}), ("Mul", ["g", "e"], "q", {}), ("Add", ["b", "q"], "p", {})],
        TOKENS,
    ),
    "BatchNorm": ([("BatchNormalization", ["x", "g", "b", "mean", "var"], "p", {})], IMAGE),
    "GroupNorm": ([("GroupNormalization", ["x", "g", "b"], "p", {"num_groups": 4})], IMAGE),
    "InstanceNorm": ([("InstanceNormalization", ["x", "g", "b"], "p", {})], IMAGE),
    "affine of an image": (
        [("Gelu", ["x"], "e", {}), ("Mul", ["gi", "e"], "q", {}), ("Add", ["bi", "q"], "p", {})],
        IMAGE,
    ),
}
# By name: nodes from `p` to `t`; `slopes` and `h` stand for those of the rank.
BETWEEN: dict[str, list[Node]] = {
    "nothing": [],
    "ReLU": [("Relu", ["p"], "t", {})],
    "LeakyReLU": [("LeakyRelu", ["p"], "t", {"alpha": 0.2})],
    "PReLU": [("PRelu", ["p", "slope"], "t", {})],
    "PReLU of channels": [("PRelu", ["p", "slopes"], "t", {})],
    "ReLU twice": [("Relu", ["p"], "r", {}), ("LeakyRelu", ["r"], "t", {"alpha": 0.5})],
    "a gate": [("Sigmoid", ["x"], "s", {}), ("Mul", ["s", "p"], "t", {})],
    "ReLU and a gate": [
        ("Relu", ["p"], "r", {}),
        ("Sigmoid", ["x"], "s", {}),
        ("Mul", ["r", "s"], "t", {}),
    ],
    "ReLU and a factor": [("Relu", ["p"], "r", {}), ("Mul", ["r", "h2"], "t", {})],
    "ReLU and a bias": [("Relu", ["p"], "r", {}), ("Add", ["r", "h2"], "t", {})],
}


def front(
    producer: str, between: str, folder: Path, extra: tuple[Node, ...] = ()
) -> tuple[Path, ir.Model, Site, dict[str, NDArray[np.generic]]]:
    """The graph producer -> between -> site, its canonical form, and what it is fed."""
    nodes, x = PRODUCERS[producer]
    image = len(x) == 4
    renamed = {"slopes": "slopes_i", "h2": "hi"} if image else {"h2": "h"}
    tail = [
        (op, [renamed.get(i, i) for i in inputs], out, attributes)
        for op, inputs, out, attributes in BETWEEN[between]
    ]
    if not tail:
        nodes = [(op, i, "t" if out == "p" else out, a) for op, i, out, a in nodes]
    if producer == "LayerNorm, then a bias" and "h" in {i for _, ins, *_ in tail for i in ins}:
        tail = [(op, ["g2" if i == "h" else i for i in ins], out, a) for op, ins, out, a in tail]
    last: Node = ("Conv", ["t", "w"], "y", {}) if image else ("MatMul", ["t", "w"], "y", {})
    chain = [*nodes, *tail, last, *extra]
    used = {name for _, inputs, *_ in chain for name in inputs}
    weight = random(1, 8, W, 1, 1) if image else random(1, W, W)
    held = {k: v for k, v in (CONSTANTS | {"g2": positive(9, W)}).items() if k in used}
    path = small_graph(folder / "g.onnx", chain, held | {"w": weight}, x=x)
    model = read_custom_graph(path)
    site = next(s for s in find_custom_sites(model.graph, "g") if s.output == "y")
    feed = {"x": random(8, *(3 if d == "n" else int(str(d)) for d in x)) * 2 + 0.5}
    return path, model, site, feed


def signal_to_noise(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    wide = wanted.astype(np.float64)
    noise = np.sum(np.square(found.astype(np.float64) - wide))
    return float(10 * np.log10(np.sum(np.square(wide)) / max(noise, 1e-300)))


def folded(model: ir.Model, site: Site, folder: Path, feed: dict[str, NDArray]) -> NDArray:
    """`y` of the graph with its fold applied and taken back."""
    scale = np.exp(np.random.default_rng(1).normal(0, 1.5, W)).astype(np.float32)
    fold = AppliedFold((site,), scale, random(6, W))
    fold.apply(model.graph)
    fold.take_back(model.graph)
    ir.save(model, folder / "folded.onnx")
    return reference_session(folder / "folded.onnx").run(feed, ["y"])["y"]


@pytest.mark.parametrize(("producer", "between"), list(product(PRODUCERS, BETWEEN)))
def test_a_folded_graph_equals_the_unfolded_one(
    tmp_path: Path, producer: str, between: str
) -> None:
    path, model, site, feed = front(producer, between, tmp_path)
    assert site.fold is not None or site.producer_fold is not None or between == "ReLU and a bias"
    if site.fold is None and site.producer_fold is None:
        return
    wanted = reference_session(path).run(feed, ["y"])["y"]
    assert signal_to_noise(folded(model, site, tmp_path, feed), wanted) >= 110


def test_scale_goes_through_a_bias_behind_an_activation(tmp_path: Path) -> None:
    _, _, site, _ = front("LayerNorm", "ReLU and a bias", tmp_path)
    assert site.producer_fold is not None
    assert {p.initializer for p in site.producer_fold.divide} == {"g", "b", "h"}


@pytest.mark.parametrize("between", ["nothing", "ReLU", "a gate"])
@pytest.mark.parametrize("producer", ["LayerNorm", "BatchNorm", "GroupNorm", "linear with a bias"])
def test_a_bias_that_something_else_reads_is_not_divided(
    tmp_path: Path, producer: str, between: str
) -> None:
    """`Sub` reads the bias too; either the fold has a copy of its own, or there is none."""
    shape = "b" if len(PRODUCERS[producer][1]) == 3 else "bi"
    extra: tuple[Node, ...] = (("Sub", ["x", shape], "other", {}), ("Neg", [shape], "n", {}))
    if producer in ("BatchNorm", "GroupNorm"):
        extra = (("Neg", ["b"], "n", {}),)
    path, model, site, feed = front(producer, between, tmp_path, extra)
    wanted = reference_session(path).run(feed, ["y"])["y"]
    fold = site.producer_fold
    if site.fold is None and fold is None:
        return
    held = [model.graph.initializers[p.initializer] for p in (fold.divide if fold else ())]
    held += [model.graph.initializers[name] for name in site.fold or ()]
    assert all(len(list(value.uses())) == 1 for value in held)
    assert signal_to_noise(folded(model, site, tmp_path, feed), wanted) >= 110


def test_a_linear_whose_channels_are_another_axis_takes_no_scale(tmp_path: Path) -> None:
    nodes: list[Node] = [("MatMul", ["x", "v"], "t", {}), ("Conv", ["t", "w"], "y", {})]
    held = {"v": random(2, W, W), "w": random(1, 8, W, 1, 1)}
    path = small_graph(tmp_path / "g.onnx", nodes, held, x=("n", W, 5, W))
    sites = find_custom_sites(read_custom_graph(path).graph, "g")
    assert all(s.producer_fold is None and s.fold is None for s in sites if s.output == "y")


def undivided(site: Site) -> Site:
    """The site with the norm's weight alone in its fold."""
    fold = ProducerFold(divide=(FoldPart(initializer="g", axis=0, start=0),), subtract=())
    return msgspec.structs.replace(site, fold=None, producer_fold=fold)


@pytest.mark.parametrize("bad", [False, True])
def test_trying_folds_finds_the_one_that_changes_its_tensor(tmp_path: Path, bad: bool) -> None:
    _, model, site, feed = front("LayerNorm", "ReLU", tmp_path)
    ir.save(model, tmp_path / "g.onnx")
    sites = [undivided(site) if bad else site]
    found = failing_folds(tmp_path, on_arrays(tmp_path, {"g": feed}), tried_folds(sites))
    assert list(found) == ([site.name] if bad else [])


def test_a_fold_behind_which_numbers_are_not_finite_is_refused(tmp_path: Path) -> None:
    _, model, site, feed = front("LayerNorm", "ReLU", tmp_path)
    ir.save(model, tmp_path / "g.onnx")
    feed["x"][0, 0, 0] = np.nan
    found = failing_folds(tmp_path, on_arrays(tmp_path, {"g": feed}), tried_folds([site]))
    assert list(found) == [site.name]
