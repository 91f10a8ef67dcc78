"""Other forms of products, computed constants and odd declarations become plain sites.

The oracle is the file as given in ONNX Runtime, without optimizations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.parity import relative
from arvg_trt.families.custom.rewrites import (
    EinsumToMatMulPass,
    ExplicitPaddingPass,
    FlatWeightPass,
    PlainGemmPass,
    RewritePass,
)
from arvg_trt.families.custom.sites import find_custom_sites

from ...graph.text import assert_same_after, graph_of, operators, written
from .models import WIDTH, Node, exported, random, small_graph

W = WIDTH
SEQUENCE = ("n", 8, 24)


Case = tuple[list[Node], dict[str, np.ndarray], tuple[object, ...]]
TWO = np.array([2], np.int64)
ALL_SITES: dict[str, Case] = {
    "alpha and beta": (
        [
            ("Gemm", ["x", "w", "b"], "a", {"alpha": 0.5, "beta": 2.0}),
            ("Gemm", ["a", "w", "b"], "y", {"alpha": 3.0, "transB": 1}),
        ],
        {"w": random(0, W, W), "b": random(1, W)},
        ("n", W),
    ),
    "a transposed input": (
        [("Gemm", ["x", "w"], "y", {"transA": 1})],
        {"w": random(0, 6, 10)},
        (6, W),
    ),
    "a factor without a bias": (
        [("Gemm", ["x", "w"], "y", {"alpha": 0.5, "beta": 7.0})],
        {"w": random(0, W, 10)},
        ("n", W),
    ),
    "einsum": (
        [
            ("Einsum", ["x", "w"], "a", {"equation": "b t k, k n -> b t n"}),
            ("Einsum", ["v", "a"], "c", {"equation": "nk,btk->btn"}),
            ("Einsum", ["c", "w"], "y", {"equation": "...k,kn->...n"}),
        ],
        {"w": random(0, W, W), "v": random(1, W, W)},
        ("n", 6, W),
    ),
    "leading axes of one": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, 1, W, 10)},
        ("n", 6, W),
    ),
    "a line, padded, strided and dilated": (
        [
            ("Conv", ["x", "w", "b"], "a", {"pads": [1, 2]}),
            ("Relu", ["a"], "r", {}),
            ("Conv", ["r", "v"], "c", {"strides": [2], "kernel_shape": [3]}),
            ("Sigmoid", ["c"], "g", {}),
            ("Mul", ["c", "g"], "s", {}),
            ("Conv", ["s", "v"], "y", {"dilations": [2], "pads": [2, 2], "kernel_shape": [3]}),
        ],
        {"w": random(0, 16, 8, 3), "v": random(1, 16, 16, 3), "b": random(2, 16)},
        SEQUENCE,
    ),
    "automatic padding": (
        [
            ("Conv", ["x", "w"], "a", {"auto_pad": "SAME_UPPER"}),
            ("Conv", ["a", "v"], "b", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
            ("Conv", ["b", "v"], "y", {"auto_pad": "VALID"}),
        ],
        {"w": random(0, 8, 8, 4, 2), "v": random(1, 8, 8, 2, 2)},
        ("n", 8, 11, 13),
    ),
    "constants that constants compute": (
        [
            ("Constant", [], "size", {"value": numpy_helper.from_array(np.array([W, W]))}),
            (
                "ConstantOfShape",
                ["size"],
                "ones",
                {"value": numpy_helper.from_array(np.ones(1, np.float32))},
            ),
            ("Mul", ["ones", "v"], "scaled", {}),
            ("Split", ["scaled"], "q", {"axis": 1, "num_outputs": 1}),
            ("Cast", ["d"], "w2", {"to": TensorProto.FLOAT}),
            ("DequantizeLinear", ["codes", "step", "zero"], "w3", {"axis": 0}),
            ("MatMul", ["x", "q"], "a", {}),
            ("MatMul", ["a", "w2"], "b", {}),
            ("MatMul", ["b", "w3"], "y", {}),
        ],
        {
            "v": random(0, W, W),
            "d": random(1, W, W).astype(np.float64),
            "codes": np.random.default_rng(2).integers(-99, 99, (W, 10)).astype(np.int8),
            "step": np.linspace(0.01, 0.02, W).astype(np.float32),
            "zero": np.arange(W).astype(np.int8),
        },
        ("n", 6, W),
    ),
    "sizes of zero": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, W, 10)},
        (0, 0, W),
    ),
    "sizes of minus one": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, W, 10)},
        (-1, -1, W),
    ),
}


@pytest.mark.parametrize("case", ALL_SITES)
def test_other_forms_are_sites_that_compute_the_same(tmp_path: Path, case: str) -> None:
    nodes, constants, x = ALL_SITES[case]
    _, sites = exported(small_graph(tmp_path / "g.onnx", nodes, constants, x=x))
    products = [n for n in nodes if n[0] in ("Conv", "MatMul", "Gemm", "Einsum")]
    assert len(sites) == len(products)
    assert all(site.weight is not None for site in sites.values())


@settings(max_examples=25, deadline=None)
@example(kind="SAME_UPPER", kernel=1, stride=4, size=20)
@given(
    kind=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    size=st.integers(13, 20),
)
def test_explicit_padding_is_what_onnxruntime_pads(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    kernel: int,
    stride: int,
    size: int,
) -> None:
    folder = tmp_path_factory.mktemp("pad")
    attributes = {"auto_pad": kind, "strides": [stride]}
    path = small_graph(
        folder / "g.onnx",
        [("Conv", ["x", "w"], "y", attributes)],
        {"w": random(0, 4, 3, kernel)},
        x=("n", 3, size),
    )
    _, sites = exported(path)
    cropped = kind != "VALID" and stride > 1 and (-(-size // stride) - 1) * stride + kernel < size
    reason = "its padding depends on the size of its input (auto_pad)"
    assert [site.excluded for site in sites.values()] == [reason if cropped else None]


LINE = "g (float[n, 4] x) => (float[n, m] y)"
PLAIN: dict[str, tuple[RewritePass, str, dict[str, np.ndarray], list[str]]] = {
    "factors": (
        PlainGemmPass(),
        f"{LINE} {{ y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) }}",
        {"w": random(0, 4, 6), "b": random(1, 6)},
        ["Gemm"],
    ),
    "one weight of two factors": (
        PlainGemmPass(),
        f"{LINE} {{ a = Gemm<alpha = 0.5>(x, w) y = Gemm<alpha = 2.0>(a, w) }}",
        {"w": random(0, 4, 4)},
        ["Gemm", "Gemm"],
    ),
    "a transposed input": (
        PlainGemmPass(),
        "g (float[4, n] x) => (float[n, m] y) { y = Gemm<transA = 1>(x, w) }",
        {"w": random(0, 4, 6)},
        ["Transpose", "Gemm"],
    ),
    "an equation": (
        EinsumToMatMulPass(),
        f'{LINE} {{ y = Einsum<equation = "nk, mk -> nm">(x, w) }}',
        {"w": random(0, 6, 4)},
        ["MatMul"],
    ),
    "an equation with the weight first": (
        EinsumToMatMulPass(),
        f'{LINE} {{ y = Einsum<equation = "km,...k->...m">(w, x) }}',
        {"w": random(0, 4, 6)},
        ["MatMul"],
    ),
    "leading axes": (
        FlatWeightPass(),
        "g (float[n, 3, 4] x) => (float[n, 3, m] y) { y = MatMul(x, w) }",
        {"w": random(0, 1, 4, 6)},
        ["MatMul"],
    ),
    "padding": (
        ExplicitPaddingPass(),
        """g (float[n, 3, h, w] x) => (float[n, 5, h, w] y) {
            y = Conv<auto_pad = "SAME_LOWER">(x, k) }""",
        {"k": random(0, 5, 3, 2, 4)},
        ["Conv"],
    ),
}
SHAPES = {"a transposed input": (4, 3), "leading axes": (2, 3, 4), "padding": (2, 3, 8, 9)}


@pytest.mark.parametrize("case", PLAIN)
def test_a_rewrite_leaves_a_plain_product_that_computes_the_same(case: str) -> None:
    rewrite, text, held, wanted = PLAIN[case]
    model = graph_of(text, **held)
    assert_same_after(rewrite, model, x=random(9, *SHAPES.get(case, (3, 4))))
    assert operators(model) == wanted
    known = {"transB", "perm", "pads"}
    assert all(set(node.attributes) <= known for node in model.graph)
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("rewrite", "nodes"),
    [
        (PlainGemmPass(), "y = Gemm<alpha = 2.0>(x, x2)"),
        (PlainGemmPass(), "y = Gemm<beta = 2.0>(x, w, x2)"),
        (PlainGemmPass(), "y = Gemm<alpha = 2.0>(w, w2)"),
        (PlainGemmPass(), "y = Gemm<transB = 1>(x, w)"),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "nk,km->nm">(x, x2)'),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "nk,km->mn">(x, w)'),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "nk,nk->nk">(x, w)'),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "nk,km">(x, w)'),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "kn,km->nm">(x, w)'),
        (EinsumToMatMulPass(), 'y = Einsum<equation = "nk,km,mo->no">(x, w, w2)'),
        (FlatWeightPass(), "y = MatMul(x, w)"),
        (FlatWeightPass(), "y = MatMul(x, stack)"),
        (FlatWeightPass(), "y = MatMul(x, lead)"),
        (ExplicitPaddingPass(), 'y = Conv<auto_pad = "NOTSET">(image, k)'),
        (ExplicitPaddingPass(), 'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 1]>(image, k)'),
        (ExplicitPaddingPass(), 'y = ConvTranspose<auto_pad = "SAME_UPPER">(image, k)'),
    ],
)
def test_a_product_that_is_more_keeps_its_form(rewrite: RewritePass, nodes: str) -> None:
    """Two activations, two constants, another order of axes, a weight of its own for each row."""
    model = graph_of(
        f"g (float[4, 4] x, float[4, 4] x2, float[n, 3, h, w] image) => (y) {{ {nodes} }}",
        w=random(0, 4, 4),
        w2=random(1, 4, 4),
        stack=random(2, 2, 4, 4),
        lead=random(3, 1, 4, 4),
        k=random(4, 3, 3, 2, 2),
    )
    before = written(model)
    assert not rewrite(model).modified
    assert written(model) == before


def test_a_node_of_another_domain_is_no_product_of_onnx() -> None:
    model = graph_of(f"{LINE} {{ y = Gemm<alpha = 2.0>(x, w) }}", w=random(0, 4, 6))
    model.graph[0].domain = "own"
    assert not PlainGemmPass()(model).modified


def branch(name: str, sign: int) -> onnx.GraphProto:
    """A weight and inner values of the same names in every branch; an outer value passed on."""
    nodes = [
        helper.make_node("Identity", ["r"], ["same"]),
        helper.make_node("MatMul", ["same", "wb"], ["t"]),
        helper.make_node("Identity", ["t"], ["o"]),
    ]
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    return helper.make_graph(
        nodes, name, [], [out], [numpy_helper.from_array(sign * random(7, W, W), "wb")]
    )


def with_bodies(path: Path) -> Path:
    passed = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["p"])],
        "passed",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["yes"]),
        helper.make_node(
            "If", ["yes"], ["a"], then_branch=branch("one", 1), else_branch=branch("two", -1)
        ),
        helper.make_node("If", ["yes"], ["b"], then_branch=passed, else_branch=branch("three", 2)),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(random(0, W, W), "w"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_bodies_run_as_before_and_no_name_is_used_twice(tmp_path: Path) -> None:
    model, sites = exported(with_bodies(tmp_path / "g.onnx"))
    outside = [site for site in sites.values() if site.weight is not None]
    inside = [site for site in sites.values() if site.weight is None]
    assert (len(outside), len(inside)) == (2, 3) == (len(outside), len(sites) - 2)
    assert {site.excluded for site in inside} == {"it is in the body of a node If"}
    names = [str(node.name) for node in model.graph.all_nodes()]
    values = [str(v.name) for node in model.graph.all_nodes() for v in node.outputs]
    assert len(set(names)) == len(names) and len(set(values)) == len(values)


def test_operators_of_another_domain_are_not_onnxs_own(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [("Conv", ["x", "w"], "a", {}), ("MatMul", ["a", "v"], "y", {})],
        {"w": random(0, 8, 8, 3, 3), "v": random(1, 4, 4)},
        x=("n", 8, 6, 6),
    )
    proto = onnx.load(path)
    proto.graph.node[0].domain = "com.microsoft.nchwc"
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    onnx.save(proto, path)
    sites = find_custom_sites(read_custom_graph(path).graph, "g")
    reasons = {site.op: site.excluded for site in sites}
    assert reasons["Conv"] == "it is com.microsoft.nchwc::Conv, no operator of ONNX"


def test_infinite_outputs_have_to_be_infinite_in_the_canonical_graph() -> None:
    exact = np.array([1.0, -np.inf, np.nan], np.float32)
    assert relative(exact.copy(), exact) == 0.0
    for index, value in ((0, np.nan), (1, np.inf), (1, 0.0), (2, 1.0)):
        other = exact.copy()
        other[index] = value
        assert not relative(other, exact) <= 1e30
