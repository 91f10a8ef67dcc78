"""Group norms in the form that ONNX Runtime has a kernel for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.graph.group_norm import ExpandGroupNormsPass
from arvg_trt.runtime.sessions.open import fast_session, reference_session

from .builders import CHANNELS
from .text import graph_of, operators, random

NORM = """g (float[n, 8, h, w] x) => (float[n, 8, h, w] y) {{
    [n] y = GroupNormalization<num_groups = {groups}{epsilon}>(x, scale, bias) }}"""


@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
@pytest.mark.parametrize("epsilon", [1e-2, None])
def test_expanded_group_norm_is_group_normalization(groups, epsilon, tmp_path) -> None:
    """Without an epsilon it is 1e-5, as ONNX says."""
    gamma, beta = random(0, CHANNELS) + 1, random(1, CHANNELS) + 1
    x = 2 * random(2, 3, CHANNELS, 5, 4) + 3
    said = "" if epsilon is None else f", epsilon = {epsilon}"
    model = graph_of(NORM.format(groups=groups, epsilon=said), scale=gamma, bias=beta)
    assert ExpandGroupNormsPass()(model).modified
    assert "GroupNormalization" not in operators(model)
    assert not {"scale", "bias"} & set(model.graph.initializers)
    assert [value.name for value in model.graph.outputs] == ["y"]
    ir.save(model, tmp_path / "norm.onnx")
    rows = x.astype(np.float64).reshape(3, groups, -1)
    rows = (rows - rows.mean(axis=2, keepdims=True)) / np.sqrt(
        rows.var(axis=2, keepdims=True) + (1e-5 if epsilon is None else epsilon)
    )
    affine = [v.astype(np.float64).reshape(1, -1, 1, 1) for v in (gamma, beta)]
    wanted = rows.reshape(x.shape) * affine[0] + affine[1]
    for session in (fast_session, reference_session):
        found = session(tmp_path / "norm.onnx").run({"x": x})["y"]
        np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_a_graph_without_group_norms_is_left() -> None:
    model = graph_of(
        "g (float[n, 8] x) => (float[n, 8] y) { y = LayerNormalization(x, s) }",
        s=np.ones(8, np.float32),
    )
    assert not ExpandGroupNormsPass()(model).modified
    assert operators(model) == ["LayerNormalization"]


def test_a_norm_whose_affine_is_computed_keeps_the_operator() -> None:
    """Adaptive norms of a user's model have one; it runs as ONNX Runtime runs it."""
    model = graph_of(
        """g (float[n, 8, h, w] x, float[8] s) => (float[n, 8, h, w] y) {
            [n] y = GroupNormalization<num_groups = 2>(x, s, bias) }""",
        bias=np.ones(8, np.float32),
    )
    assert not ExpandGroupNormsPass()(model).modified
    assert operators(model) == ["GroupNormalization"]
