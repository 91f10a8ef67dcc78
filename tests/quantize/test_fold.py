"""Folds found in a user's graph: the tensor becomes x / s - p, and the network stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.graph.sites import Site
from arvg_trt.quantize.fold import fold_into_producer, folds_scale, folds_shift, holds_producer
from arvg_trt.runtime.sessions.open import reference_session

from ..families.custom.models import WIDTH, Node, positive, random, small_graph

W = WIDTH
IMAGE = ("n", W, 5, 4)
TOKENS = ("n", 6, W)
PER_CHANNEL = {"g": positive(3, W), "b": random(4, W)}
IMAGE_CHANNELS = {"g": positive(3, W, 1, 1), "b": random(4, 1, W, 1, 1)}
LINEAR: Node = ("MatMul", ["t", "w"], "y", {})
CONV: Node = ("Conv", ["t", "w"], "y", {})
W_LINEAR, W_CONV = random(1, W, W), random(1, 8, W, 1, 1)
W_FIRST = random(2, W, W)
LAST = np.array([-1])
GELU: Node = ("Gelu", ["x"], "e", {})

# Nodes in front of a site that reads `t`, constants, and whether a shift goes for free too.
FREE: dict[str, tuple[list[Node], dict[str, np.ndarray], tuple[object, ...], bool]] = {
    "LayerNorm without a bias": (
        [("LayerNormalization", ["x", "g"], "t", {})],
        {"g": PER_CHANNEL["g"]},
        TOKENS,
        False,
    ),
    "affine behind a decomposed norm": (
        [GELU, ("Mul", ["e", "g"], "m", {}), ("Add", ["b", "m"], "t", {})],
        PER_CHANNEL,
        TOKENS,
        True,
    ),
    "affine of an image": (
        [GELU, ("Mul", ["g", "e"], "m", {}), ("Add", ["m", "b"], "t", {})],
        IMAGE_CHANNELS,
        IMAGE,
        True,
    ),
    "RMSNorm's weight": ([GELU, ("Mul", ["e", "g"], "t", {})], PER_CHANNEL, TOKENS, False),
    "norm, then an affine": (
        [("LayerNormalization", ["x", "g"], "m", {}), ("Add", ["m", "b"], "t", {})],
        PER_CHANNEL,
        TOKENS,
        True,
    ),
    "linear": ([("MatMul", ["x", "v"], "t", {})], {"v": W_FIRST}, TOKENS, False),
    "linear with a bias": (
        [("MatMul", ["x", "v"], "m", {}), ("Add", ["m", "b"], "t", {})],
        {"v": W_FIRST, "b": PER_CHANNEL["b"]},
        TOKENS,
        True,
    ),
    "Gemm": ([("Gemm", ["x", "v", "b"], "t", {})], {"v": W_FIRST, **PER_CHANNEL}, ("n", W), True),
    "linear, then ReLU": (
        [
            ("MatMul", ["x", "v"], "m", {}),
            ("Add", ["m", "b"], "a", {}),
            ("Relu", ["a"], "t", {}),
        ],
        {"v": W_FIRST, "b": PER_CHANNEL["b"]},
        TOKENS,
        False,
    ),
    "linear, then LeakyReLU": (
        [("MatMul", ["x", "v"], "m", {}), ("LeakyRelu", ["m"], "t", {"alpha": 0.2})],
        {"v": W_FIRST},
        TOKENS,
        False,
    ),
    "gated linear": (
        [("MatMul", ["x", "v"], "m", {}), GELU, ("Mul", ["e", "m"], "t", {})],
        {"v": W_FIRST},
        TOKENS,
        False,
    ),
}


def front(
    kind: str,
    nodes: list[Node],
    constants: dict[str, np.ndarray],
    x: tuple[object, ...],
    folder: Path,
) -> tuple[Path, ir.Model, Site]:
    last = CONV if len(x) == 4 else LINEAR
    weight = W_CONV if len(x) == 4 else W_LINEAR
    used = {name for _, inputs, *_ in nodes for name in inputs}
    held = {k: v for k, v in constants.items() if k in used} | {"w": weight}
    path = small_graph(folder / "g.onnx", [*nodes, last], held, x=x)
    model = read_custom_graph(path)
    site = next(s for s in find_custom_sites(model.graph, "g") if s.output == "y")
    return path, model, site


def run(model: ir.Model, folder: Path, feeds: dict[str, NDArray], output: str) -> NDArray:
    """One tensor of the graph, which need not be an output."""
    graph = model.graph
    if output not in {v.name for v in graph.outputs}:
        value = next(v for n in graph for v in n.outputs if v.name == output)
        value.dtype = ir.DataType.FLOAT
        graph.outputs.append(value)
    folder.mkdir(exist_ok=True)
    ir.save(model, folder / "run.onnx")
    return reference_session(folder / "run.onnx").run(feeds, [output])[output].astype(np.float64)


@pytest.mark.parametrize("kind", FREE)
def test_folded_tensor_is_scaled_and_shifted_exactly(tmp_path: Path, kind: str) -> None:
    nodes, constants, x, shifts = FREE[kind]
    path, model, site = front(kind, nodes, constants, x, tmp_path)
    assert site.fold is None and holds_producer(model.graph, site)
    assert (folds_scale(site), folds_shift(site)) == (True, shifts)
    feed = {"x": random(8, *(3 if d == "n" else int(str(d)) for d in x))}
    before = run(read_custom_graph(path), tmp_path / "before", feed, site.input)
    scale = positive(5, W)
    offset = random(6, W) if shifts else np.zeros(W, np.float32)
    fold_into_producer(model.graph, site, scale, offset)
    after = run(model, tmp_path / "after", feed, site.input)
    shape = [W if k == site.channel_axis else 1 for k in range(before.ndim)]
    wanted = before / scale.astype(np.float64).reshape(shape)
    wanted -= offset.reshape(shape)
    np.testing.assert_allclose(after, wanted, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", FREE)
def test_network_is_the_same_once_the_readers_weight_undoes_the_fold(
    tmp_path: Path, kind: str
) -> None:
    nodes, constants, x, shifts = FREE[kind]
    path, model, site = front(kind, nodes, constants, x, tmp_path)
    feed = {"x": random(8, *(3 if d == "n" else int(str(d)) for d in x))}
    before = run(read_custom_graph(path), tmp_path / "before", feed, "y")
    scale = positive(5, W)
    offset = random(6, W) if shifts else np.zeros(W, np.float32)
    fold_into_producer(model.graph, site, scale, offset)
    weight = model.graph.initializers[str(site.weight)]
    held = weight.const_value.numpy().astype(np.float64)
    turned = scale.reshape(-1, 1) if site.op == "MatMul" else scale.reshape(1, -1, 1, 1)
    undone = held * turned
    weight.const_value = ir.tensor(undone.astype(np.float32), name=str(site.weight))
    after = run(model, tmp_path / "after", feed, "y")
    missing = offset.astype(np.float64) @ (undone if site.op == "MatMul" else undone[:, :, 0, 0].T)
    missing = missing.reshape(-1, 1, 1) if site.op == "Conv" else missing
    np.testing.assert_allclose(after + missing, before, atol=1e-5 * np.abs(before).max())


NORMS: dict[str, tuple[Node, dict[str, np.ndarray], tuple[object, ...]]] = {
    "LayerNormalization": (
        ("LayerNormalization", ["x", "g", "b"], "t", {}),
        PER_CHANNEL,
        TOKENS,
    ),
    "GroupNormalization": (
        ("GroupNormalization", ["x", "g", "b"], "t", {"num_groups": 4}),
        PER_CHANNEL,
        IMAGE,
    ),
    "InstanceNormalization": (
        ("InstanceNormalization", ["x", "g", "b"], "t", {}),
        PER_CHANNEL,
        IMAGE,
    ),
    "BatchNormalization": (
        ("BatchNormalization", ["x", "g", "b", "mean", "var"], "t", {}),
        {**PER_CHANNEL, "mean": random(5, W), "var": positive(6, W)},
        IMAGE,
    ),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_with_weight_and_bias_is_the_sites_fold(tmp_path: Path, kind: str) -> None:
    node, constants, x = NORMS[kind]
    _, _, site = front(kind, [node], constants, x, tmp_path)
    assert site.fold == ("g", "b") and site.producer_fold is None


KEPT: dict[str, tuple[list[Node], dict[str, np.ndarray], tuple[object, ...]]] = {
    "an activation function that is not homogeneous": (
        [("MatMul", ["x", "v"], "m", {}), ("Gelu", ["m"], "t", {})],
        {"v": W_FIRST},
        TOKENS,
    ),
    "a residual": (
        [("MatMul", ["x", "v"], "m", {}), ("Add", ["m", "x"], "t", {})],
        {"v": W_FIRST},
        TOKENS,
    ),
    "a second reader of what lies between": (
        [
            ("MatMul", ["x", "v"], "m", {}),
            ("Relu", ["m"], "r", {}),
            ("ReduceSum", ["m", "last"], "sum", {"keepdims": 1}),
            ("Add", ["r", "sum"], "t", {}),
        ],
        {"v": W_FIRST, "last": LAST},
        TOKENS,
    ),
    "a convolution, whose output has a grid of its own": (
        [("Conv", ["x", "v"], "t", {})],
        {"v": random(2, W, W, 1, 1)},
        IMAGE,
    ),
    "a table of positions": ([GELU, ("Add", ["e", "v"], "t", {})], {"v": random(2, 6, W)}, TOKENS),
    "a scalar": ([GELU, ("Mul", ["e", "v"], "t", {})], {"v": np.float32(2)}, TOKENS),
    "a gate that is broadcast over the channels": (
        [
            ("MatMul", ["x", "v"], "m", {}),
            ("ReduceSum", ["m", "last"], "s", {"keepdims": 1}),
            ("Mul", ["s", "x"], "t", {}),
        ],
        {"v": W_FIRST, "last": LAST},
        TOKENS,
    ),
    "the graph's input": ([("Relu", ["x"], "t", {})], {}, TOKENS),
}


@pytest.mark.parametrize("kind", KEPT)
def test_nothing_is_folded_through(tmp_path: Path, kind: str) -> None:
    nodes, constants, x = KEPT[kind]
    if "ReduceSum" in [op for op, *_ in nodes]:
        nodes = [
            (op, [*ins, "last"], out, attributes)
            if op == "ReduceSum"
            else (op, ins, out, attributes)
            for op, ins, out, attributes in nodes
        ]
        constants = constants | {"last": np.array([-1])}
    _, _, site = front(kind, nodes, constants, x, tmp_path)
    assert site.fold is None and site.producer_fold is None


def test_a_norm_that_something_else_reads_keeps_its_affine(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("LayerNormalization", ["x", "g", "b"], "t", {}),
        ("MatMul", ["t", "w"], "m", {}),
        ("Add", ["m", "t"], "y", {}),
    ]
    path = small_graph(tmp_path / "g.onnx", nodes, {**PER_CHANNEL, "w": W_LINEAR})
    (site,) = find_custom_sites(read_custom_graph(path).graph, "g")
    assert site.fold is None and site.producer_fold is None


def test_norms_that_share_constants_get_their_own_before_they_are_folded(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("LayerNormalization", ["x", "g", "b"], "t", {}),
        ("MatMul", ["t", "w"], "m", {}),
        ("LayerNormalization", ["m", "g", "b"], "n", {}),
        ("MatMul", ["n", "v"], "y", {}),
    ]
    held = {**PER_CHANNEL, "w": W_LINEAR, "v": W_FIRST}
    path = small_graph(tmp_path / "g.onnx", nodes, held)
    model = read_custom_graph(path)
    first, second = find_custom_sites(model.graph, "g")
    assert first.fold is not None and second.fold is not None
    assert not set(first.fold) & set(second.fold)
    for site in (first, second):
        for name, key in zip(site.fold or (), ("g", "b"), strict=True):
            assert np.array_equal(model.graph.initializers[name].const_value.numpy(), held[key])
