"""Long group norms written out: what PyTorch and float64 compute, and what keeps its operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.export import Dim

from arvg_trt.export.passes import norms as norm_passes
from arvg_trt.export.passes.norm_drift import MOST_DRIFT, drift, mark_drifting_norms
from arvg_trt.export.passes.norms import marked
from arvg_trt.export.tracing import trace

from ...graph.text import graph_of, made_by, operators, run

CHANNELS, GROUPS = 8, 4


def model_of(channels: int = CHANNELS, groups: int = GROUPS) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.SiLU()).requires_grad_(False)


def graph_with(model: nn.Sequential, *shape: int | str) -> ir.Model:
    """The norm and what is behind it, as the exporter writes them, of images `shape`."""
    norm = model[0]
    sizes = ", ".join(map(str, shape))
    behind = "[s] s = Sigmoid(z) [m] y = Mul(z, s) }" if len(model) > 1 else "}"
    attributes = f"num_groups = {norm.num_groups}, epsilon = {norm.eps:.8f}"
    made = "z" if len(model) > 1 else "y"
    graph = graph_of(
        f"""g (float[n, {sizes}] x) => (float[n, {sizes}] y)
            {{ [n] {made} = GroupNormalization<{attributes}>(x, w, b) {behind}""",
        w=norm.weight.detach().numpy(),
        b=norm.bias.detach().numpy(),
    )
    graph.graph[0].outputs[0].shape = graph.graph.inputs[0].shape
    graph.graph[0].outputs[0].type = graph.graph.inputs[0].type
    return made_by(graph, n="0")


def rewritten(model: nn.Sequential, *shape: int | str) -> ir.Model:
    graph = graph_with(model, *shape)
    norm_passes.SplitLongNormsPass(drifting=marked(model))(graph)
    return graph


def in_float64(model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    norm = model[0]
    groups = x.astype(np.float64).reshape(len(x), norm.num_groups, -1)
    deviation = np.sqrt(groups.var(axis=2, keepdims=True) + norm.eps)
    normed = ((groups - groups.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    weight, bias = (p.double().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    y = normed * weight + bias
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("shape", [(CHANNELS, 6, 10), (CHANNELS, 1, 31)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_norm_written_out_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], count: int
) -> None:
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 60)
    model = model_of()
    graph = rewritten(model, *shape)
    assert ("GroupNormalization" in operators(graph)) == (shape[1] * shape[2] * 2 <= 60)
    x = np.random.default_rng(0).normal(2, 3, (count, *shape)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x=x)["y"], in_float64(model, x), atol=2e-6)


def test_a_long_group_keeps_its_digits() -> None:
    model = model_of(channels=2, groups=1)
    shape = (2, 512, 1024)
    x = np.random.default_rng(0).normal(3, 1, (1, *shape)).astype(np.float32)
    graph = rewritten(model, *shape)
    assert "GroupNormalization" not in operators(graph)
    assert np.abs(run(graph, x=x)["y"] - in_float64(model, x)).max() < 2e-5


@pytest.mark.parametrize("side", [None, 6, 7])
def test_a_norm_of_any_size_is_written_out_where_its_usual_one_is_long(
    monkeypatch: pytest.MonkeyPatch, side: int | None
) -> None:
    """Eight channels in four groups on a map of `side` x `side`; it is right at other sizes too."""
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 2 * 6 * 6)
    model = model_of()
    graph = rewritten(model, CHANNELS, "h", "w")
    assert "GroupNormalization" in operators(graph)
    assert norm_passes.SplitLongNormsPass(side)(graph).modified == (side == 7)
    assert ("GroupNormalization" in operators(graph)) == (side != 7)
    for size in ((3, 5), (8, 1), (9, 12)):
        x = np.random.default_rng(0).normal(2, 3, (2, CHANNELS, *size)).astype(np.float32)
        np.testing.assert_allclose(run(graph, x=x)["y"], in_float64(model, x), atol=2e-6)


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [
        (64, None, 64),
        ("h", 24, 24),
        ("16*h", 24, 384),
        ("8*s39", 24, 192),
        ("16*h", None, 0),
        ("h + 1", 24, 0),
        (None, 24, 0),
    ],
)
def test_the_usual_size_is_a_multiple_of_the_latent_maps_side(
    size: int | str | None, side: int | None, wanted: int
) -> None:
    given = size if isinstance(size, int) else ir.SymbolicDim(size)
    assert norm_passes.usual(given, side) == wanted


def test_short_norms_and_those_of_any_size_keep_the_operator() -> None:
    assert "GroupNormalization" in operators(rewritten(model_of(), CHANNELS, 64, 64))
    assert "GroupNormalization" in operators(rewritten(model_of(), CHANNELS, "h", "w"))


def test_a_norm_that_is_the_graphs_output_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 60)
    graph = rewritten(model_of()[:1], CHANNELS, 8, 8)
    assert "GroupNormalization" not in operators(graph)
    (output,) = graph.graph.outputs
    assert output.name == "y"
    assert list(output.shape or ())[1:] == [CHANNELS, 8, 8]


def off_centre(shape: tuple[int, ...], mean: float) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, 1, (1, *shape)).astype(np.float32)


@pytest.mark.parametrize(("mean", "drifts"), [(0.0, False), (1.0, False), (10.0, True)])
def test_the_values_of_a_norm_decide_whether_it_is_written_out(mean: float, drifts: bool) -> None:
    """A map of 362x362: 131,044 values a group, far below the size that always is."""
    model = model_of(channels=4, groups=4)
    shape = (4, 362, 362)
    x = off_centre(shape, mean)
    errors = mark_drifting_norms(model, lambda: model(torch.from_numpy(x)))
    assert list(errors) == ["0"]
    assert (errors["0"] > MOST_DRIFT) == drifts
    graph = rewritten(model, *shape)
    assert ("GroupNormalization" not in operators(graph)) == drifts
    assert np.abs(run(graph, x=x)["y"] - in_float64(model, x)).max() < (
        1e-5 if drifts else MOST_DRIFT
    )


@pytest.mark.parametrize("why", ["long", "marked", None])
def test_the_exporters_graph_is_written_out_too(
    monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    model, shape = model_of(), (CHANNELS, 6, 10)
    if why == "long":
        monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 60)
    elif why == "marked":
        setattr(model[0], norm_passes.MARK, True)
    graph = trace(model, (torch.zeros(2, *shape),), ({0: Dim("n")},), ["x"], ["y"])
    assert ("GroupNormalization" in operators(graph)) == (why is None)
    x = np.random.default_rng(0).normal(2, 3, (3, *shape)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x=x)["y"], in_float64(model, x), atol=2e-6)


def test_the_exporters_names_of_sizes_are_multiples_of_the_latent_maps_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 2 * 6 * 6)
    model, sizes = model_of(), ({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    graph = trace(model, (torch.zeros(2, CHANNELS, 3, 5),), sizes, ["x"], ["y"])
    assert "GroupNormalization" in operators(graph)
    assert not norm_passes.SplitLongNormsPass(6)(graph).modified
    assert norm_passes.SplitLongNormsPass(7)(graph).modified
    assert "GroupNormalization" not in operators(graph)
    for size in ((3, 5), (8, 1), (9, 12)):
        x = np.random.default_rng(0).normal(2, 3, (2, CHANNELS, *size)).astype(np.float32)
        np.testing.assert_allclose(run(graph, x=x)["y"], in_float64(model, x), atol=2e-6)


def test_a_norm_of_another_rank_or_of_unknown_channels_keeps_the_operator() -> None:
    shapes = ("n, 4, t", "n, c, 512, 512", "n, 4, 512, 512, 512")
    for shape in shapes:
        text = (
            f"g (float[{shape}] x) => (y) {{ [n] y = GroupNormalization<num_groups = 1>(x, s, s) }}"
        )
        graph = made_by(graph_of(text, s=np.ones(4, np.float32)), n="norm")
        assert not norm_passes.SplitLongNormsPass(512, drifting=["norm"])(graph).modified


def test_a_long_norm_with_an_affine_of_the_graph_cannot_be_written_out() -> None:
    text = """g (float[n, 4, 9, 9] x, float[4] s) => (y) {
        [n] y = GroupNormalization<num_groups = 1>(x, s, s) }"""
    graph = made_by(graph_of(text), n="norm")
    assert not norm_passes.SplitLongNormsPass()(graph).modified
    with pytest.raises(ir.passes.PreconditionError, match="n has an affine"):
        norm_passes.SplitLongNormsPass(drifting=["norm"])(graph)


def test_the_error_is_that_of_the_operator_against_float64() -> None:
    x = off_centre((4, 64, 64), 10.0)
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    graph = graph_with(nn.Sequential(norm).requires_grad_(False), 4, 64, 64)
    groups = x.astype(np.float64).reshape(1, 2, -1)
    wanted = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-6)
    error = float(np.abs(run(graph, x=x)["y"] - wanted.reshape(x.shape)).max())
    assert drift(x, 2, 1e-6) == pytest.approx(error, rel=0.5)


def test_a_norm_that_gives_nan_counts_as_drifting() -> None:
    model = model_of()
    x = torch.full((1, CHANNELS, 4, 4), torch.nan)
    mark_drifting_norms(model, lambda: model(x))
    assert marked(model) == {"0"}
