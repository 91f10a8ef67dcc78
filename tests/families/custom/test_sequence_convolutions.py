"""Convolutions over one axis become those of images of height 1, and compute the same."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from arvg_trt.families.custom.sequence_convolutions import SequenceConvolutionsPass

from ...graph.text import assert_same_after, graph_of, operators, random
from .models import Node, exported, small_graph

LINE = ("n", 8, 24)
TEXT = "g (float[n, 4, 9] x) => (float[n, c, t] y)"


def test_sequence_convolutions_touch_behind_what_works_by_element(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w"], "a", {"pads": [1, 1]}),
        ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "w"], "y", {"pads": [1, 1]}),
    ]
    model, sites = exported(
        small_graph(tmp_path / "g.onnx", nodes, {"w": random(0, 8, 8, 3)}, x=LINE)
    )
    assert [n.op_type for n in model.graph] == ["Unsqueeze", "Conv", "Relu", "Conv", "Squeeze"]
    assert {site.weight_shape for site in sites.values()} == {(8, 8, 1, 3)}


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ("y = Conv<pads = [1, 2]>(x, w)", ["Unsqueeze", "Conv", "Squeeze"]),
        ("y = Conv<strides = [2], dilations = [3]>(x, w)", ["Unsqueeze", "Conv", "Squeeze"]),
        ("a = Conv(x, w) y = Relu(a)", ["Unsqueeze", "Conv", "Relu", "Squeeze"]),
        (
            "a = Conv(x, w) y = BatchNormalization(a, one, one, one, one)",
            ["Unsqueeze", "Conv", "BatchNormalization", "Squeeze"],
        ),
        (
            "a = Conv(x, w) b = Tanh(a) y = Conv(b, w)",
            ["Unsqueeze", "Conv", "Tanh", "Conv", "Squeeze"],
        ),
        (  # a softmax is over an axis that the Squeeze would move
            "a = Conv(x, w) b = Softmax(a) y = Conv(b, w)",
            ["Unsqueeze", "Conv", "Squeeze", "Softmax", "Unsqueeze", "Conv", "Squeeze"],
        ),
        (  # two readers, of which one is no convolution
            "a = Conv(x, w) b = Conv(a, u) y = Add(a, b)",
            ["Unsqueeze", "Conv", "Squeeze", "Conv", "Squeeze", "Add"],
        ),
    ],
)
def test_a_convolution_over_a_line_is_one_of_an_image(nodes: str, wanted: list[str]) -> None:
    one = abs(random(1, 4)) + 0.5
    held = {"w": random(0, 4, 4, 3), "u": random(2, 4, 4, 1), "one": one}
    model = graph_of(f"{TEXT} {{ {nodes} }}", **{k: v for k, v in held.items() if f" {k}" in nodes})
    assert_same_after(SequenceConvolutionsPass(), model, x=random(3, 2, 4, 9))
    assert operators(model) == wanted
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Conv<group = 2>(x, grouped)",
        'y = Conv<auto_pad = "SAME_UPPER", strides = [2]>(x, w)',
        "v = Relu(w) y = Conv(x, v)",
        "y = ConvTranspose(x, w)",
    ],
)
def test_what_is_no_plain_convolution_keeps_its_one_axis(nodes: str) -> None:
    model = graph_of(f"{TEXT} {{ {nodes} }}", w=random(0, 4, 4, 3), grouped=random(1, 4, 2, 3))
    before = operators(model)
    assert not SequenceConvolutionsPass()(model).modified
    assert operators(model) == before


def test_the_axes_of_a_squeeze_are_an_input_from_opset_13() -> None:
    model = graph_of(f"{TEXT} {{ y = Conv(x, w) }}", opset=12, w=random(0, 4, 4, 3))
    with pytest.raises(ir.passes.PreconditionError, match="opset 12 is below 13"):
        SequenceConvolutionsPass()(model)
