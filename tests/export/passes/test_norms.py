"""Long group norms written out: what PyTorch and float64 compute, and what keeps its operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.export import Dim

from arvg_trt.export.passes import norms as norm_passes
from arvg_trt.export.passes.norm_drift import MOST_DRIFT, drift, mark_drifting_norms
from arvg_trt.export.passes.norms import marked
from arvg_trt.export.tracing import trace

CHANNELS, GROUPS = 8, 4


def model_of(channels: int = CHANNELS, groups: int = GROUPS) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.SiLU()).requires_grad_(False)


def exported(model: nn.Module, shape: tuple[int, ...], fixed: bool = True) -> ir.Model:
    """A graph from torch's exporter, after the passes."""
    sizes = {0: Dim("n")} if fixed else {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}
    return trace(model, (torch.zeros(2, *shape),), (sizes,), ["x"], ["y"])


NORM = """
<ir_version: 10, opset_import: ["": 21]>
g (float[{shape}] x) => (float[{shape}] y)
{{
    {output} = GroupNormalization <num_groups = {groups}, epsilon = {epsilon}> (x, scale, bias)
    {rest}
}}
"""
SILU = "s = Sigmoid(normed)  y = Mul(normed, s)"


def written(model: nn.Sequential, shape: tuple[int, ...], fixed: bool = True) -> ir.Model:
    """The same graph as text, before the pass: a norm, and a SiLU where the model has one."""
    norm = model[0]
    assert isinstance(norm, nn.GroupNorm)
    silu = len(model) > 1 and isinstance(model[1], nn.SiLU)
    text = NORM.format(
        shape=", ".join(["n", str(shape[0]), *(map(str, shape[1:]) if fixed else ("h", "w"))]),
        output="normed" if silu else "y",
        groups=norm.num_groups,
        epsilon=norm.eps,
        rest=SILU if silu else "",
    )
    proto = onnx.parser.parse_model(text)
    for name, parameter in (("scale", norm.weight), ("bias", norm.bias)):
        proto.graph.initializer.append(numpy_helper.from_array(parameter.detach().numpy(), name))
    onnx.checker.check_model(proto, full_check=True)
    return ir.serde.deserialize_model(proto)


def split(model: nn.Sequential, shape: tuple[int, ...], fixed: bool = True) -> ir.Model:
    """The graph as text, after the pass."""
    graph = written(model, shape, fixed)
    assert operators(graph)[0] == "GroupNormalization"
    norm_passes.split_long_norms(graph.graph)
    return graph


def operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


def run(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


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
    graph = split(model, shape)
    assert ("GroupNormalization" in operators(graph)) == (shape[1] * shape[2] * 2 <= 60)
    x = np.random.default_rng(0).normal(2, 3, (count, *shape)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x), in_float64(model, x), atol=2e-6)


def test_a_long_group_keeps_its_digits() -> None:
    model = model_of(channels=2, groups=1)
    shape = (2, 512, 1024)
    x = np.random.default_rng(0).normal(3, 1, (1, *shape)).astype(np.float32)
    graph = split(model, shape)
    assert "GroupNormalization" not in operators(graph)
    assert np.abs(run(graph, x) - in_float64(model, x)).max() < 2e-5


@pytest.mark.parametrize(
    ("side", "make"), [(None, written), (6, written), (7, written), (7, exported)]
)
def test_a_norm_of_any_size_is_written_out_where_its_usual_one_is_long(
    monkeypatch: pytest.MonkeyPatch, side: int | None, make: Callable[..., ir.Model]
) -> None:
    """Eight channels in four groups on a map of `side` x `side`; it is right at other sizes too."""
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 2 * 6 * 6)
    model = model_of()
    graph = make(model, (CHANNELS, 3, 5), fixed=False)
    assert "GroupNormalization" in operators(graph)
    norm_passes.split_long_norms(graph.graph, side)
    assert ("GroupNormalization" in operators(graph)) == (side != 7)
    for size in ((3, 5), (8, 1), (9, 12)):
        x = np.random.default_rng(0).normal(2, 3, (2, CHANNELS, *size)).astype(np.float32)
        np.testing.assert_allclose(run(graph, x), in_float64(model, x), atol=2e-6)


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
    assert "GroupNormalization" in operators(split(model_of(), (CHANNELS, 64, 64)))
    assert "GroupNormalization" in operators(split(model_of(), (CHANNELS, 512, 1024), False))


def test_a_norm_that_is_the_graphs_output_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_passes, "LONGEST_GROUP", 60)
    graph = split(model_of()[:1], (CHANNELS, 8, 8))
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
    graph = exported(model, shape)
    assert ("GroupNormalization" not in operators(graph)) == drifts
    assert np.abs(run(graph, x) - in_float64(model, x)).max() < (1e-5 if drifts else MOST_DRIFT)


def test_the_error_is_that_of_the_operator_against_float64() -> None:
    x = off_centre((4, 64, 64), 10.0)
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    graph = written(nn.Sequential(norm), (4, 64, 64))
    groups = x.astype(np.float64).reshape(1, 2, -1)
    wanted = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-6)
    error = float(np.abs(run(graph, x) - wanted.reshape(x.shape)).max())
    assert drift(x, 2, 1e-6) == pytest.approx(error, rel=0.5)


def test_a_norm_that_gives_nan_counts_as_drifting() -> None:
    model = model_of()
    x = torch.full((1, CHANNELS, 4, 4), torch.nan)
    mark_drifting_norms(model, lambda: model(x))
    assert marked(model) == {"0"}
