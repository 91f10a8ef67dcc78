"""Constants that constants compute, and models in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import ExportError
from arvg_trt.families.custom import constants
from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.constants import FoldConstantsPass, WidenFloat16Pass
from arvg_trt.families.custom.parity import relative
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.runtime.sessions.open import reference_session

from ...graph.text import assert_same_after, graph_of, operators, random, run
from .models import WIDTH, exported, small_graph

W = WIDTH


def half_file(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 6, 10])],
        [
            numpy_helper.from_array(random(0, W, W).astype(np.float16), "w"),
            numpy_helper.from_array(random(1, W, 10).astype(np.float16), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_half_files_are_widened_and_keep_the_types_of_their_ends(tmp_path: Path) -> None:
    path = half_file(tmp_path / "half.onnx")
    model, sites = exported(path)
    assert [s.excluded for s in sites.values()] == [None, None]
    ends = (*model.graph.inputs, *model.graph.outputs)
    assert {v.dtype for v in ends} == {ir.DataType.FLOAT16}
    x = random(3, 2, 6, W).astype(np.float16)
    w, v = (random(k, W, n).astype(np.float16).astype(np.float64) for k, n in ((0, W), (1, 10)))
    found = reference_session(tmp_path / "half_out/half.onnx").run({"x": x})["y"]
    assert relative(found, x.astype(np.float64) @ w @ v) < 2e-3  # the output's own rounding


def test_constants_that_cannot_be_evaluated_stay_in_the_graph(tmp_path: Path) -> None:
    """An operator of ONNX Runtime alone on a constant, beside one that folds."""
    path = small_graph(
        tmp_path / "g.onnx",
        [
            ("Inverse", ["w"], "i", {}),
            ("MatMul", ["x", "i"], "a", {}),
            ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["x", "t"], "b", {}),
            ("Add", ["a", "b"], "y", {}),
        ],
        {"w": np.eye(W, dtype=np.float32) * 2},
    )
    proto = onnx.load(path)
    proto.graph.node[0].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    model = read_custom_graph(path)
    reasons = [site.excluded for site in find_custom_sites(model.graph, "g")]
    assert reasons == ["its weight is computed in the graph", None]


LINE = "g (float[n, 4] x) => (float[n, 4] y)"
FOLDED = {
    "a product with a number": "v = Mul(w, two) y = MatMul(x, v)",
    "an identity": "v = Identity(w) y = MatMul(x, v)",
    "a transpose": "v = Transpose<perm = [1, 0]>(w) y = MatMul(x, v)",
    "parts of a constant": """a, b = Split<axis = 1>(w, parts)
        v = Concat<axis = 1>(b, a) y = MatMul(x, v)""",
    "equal parts": """a, b = Split<axis = 0, num_outputs = 2>(w)
        v = Concat<axis = 0>(b, a) y = MatMul(x, v)""",
    "quantized weights": "v = DequantizeLinear(q, two, z) y = MatMul(x, v)",
    "quantized columns": "v = DequantizeLinear<axis = -1>(q, s, zs) y = MatMul(x, v)",
    "quantized rows": "v = DequantizeLinear<axis = 0>(u, s, zu) y = MatMul(x, v)",
    "symmetric rows": "v = DequantizeLinear<axis = 0>(q, s) y = MatMul(x, v)",
    "quantized weights that are transposed": """a = DequantizeLinear<axis = 0>(q, s, zs)
        v = Transpose<perm = [1, 0]>(a) y = MatMul(x, v)""",
    "what is quantized in blocks": """v = DequantizeLinear<axis = 0, block_size = 2>(q, s2)
        y = MatMul(x, v)""",
    "quantized rows that are none": """a = DequantizeLinear<axis = 0>(q0, s0)
        v = Concat<axis = 0>(a, w) y = MatMul(x, v)""",
}


@pytest.mark.parametrize("what", FOLDED)
def test_what_constants_alone_decide_is_computed_once(what: str) -> None:
    held = {
        "w": random(0, 4, 4),
        "two": np.float32(2),
        "parts": np.array([1, 3]),
        "q": np.arange(16, dtype=np.int8).reshape(4, 4),
        "z": np.int8(3),
        "s": np.array([0.1, 2, 3e-3, 7], np.float32),
        "zs": np.array([-3, 0, 5, 127], np.int8),
        "u": np.arange(240, 256, dtype=np.uint8).reshape(4, 4),
        "zu": np.array([250, 0, 5, 128], np.uint8),
        "q0": np.zeros((0, 4), np.int8),
        "s0": np.zeros(0, np.float32),
        "s2": np.array([[0.1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
    }
    model = graph_of(f"{LINE} {{ {FOLDED[what]} }}", **held)
    assert_same_after(FoldConstantsPass(), model, x=random(1, 3, 4))
    assert operators(model) == ["MatMul"]
    assert len(model.graph.initializers) == 1


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Mul(x, w) y = Relu(a)",
        "a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(b, a)",
        "r = RandomNormalLike(w) y = Add(x, r)",
    ],
)
def test_what_an_input_or_chance_decides_stays(nodes: str) -> None:
    model = graph_of(f"{LINE} {{ {nodes} }}", w=random(0, 4, 4))
    before = operators(model)
    FoldConstantsPass()(model)
    assert operators(model) == before


def test_a_failure_before_any_node_is_evaluated_is_one_line_for_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such\n  operator")

    monkeypatch.setattr(constants, "fold_constants", fail)
    with pytest.raises(ExportError, match="constants cannot be folded: no such operator"):
        FoldConstantsPass()(graph_of(f"{LINE} {{ y = Relu(x) }}"))


HALF = """g (float16[n, 4] x, float[n, 4] u) => (float16[n, 4] y, float[n, 4] z) {
    a = MatMul(x, w)
    c = ConstantOfShape(shape)
    b = Add(a, c)
    y = Relu(b)
    f = Cast<to = 1>(y)
    z = Add(f, u)
}"""


def test_a_half_graph_computes_in_float_and_its_ends_keep_their_types() -> None:
    weight, x = random(0, 4, 4).astype(np.float16), random(1, 3, 4).astype(np.float16)
    u = random(2, 3, 4)
    model = graph_of(HALF, w=weight, shape=np.array([1]))
    one = numpy_helper.from_array(np.ones(1, np.float16), "one")
    model.graph[1].attributes["value"] = ir.AttrTensor("value", ir.from_proto(one))
    types = [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)]
    assert WidenFloat16Pass()(model).modified
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == types
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = run(model, x=x, u=u)
    exact = np.maximum(x.astype(np.float64) @ weight.astype(np.float64) + 1, 0)
    np.testing.assert_array_equal(found["y"], exact.astype(np.float32).astype(np.float16))
    np.testing.assert_allclose(found["z"], exact + u, atol=1e-6)


def test_a_float_model_with_half_inputs_alone_is_none_in_half() -> None:
    text = "g (float16[n, 4] x) => (float[n, 4] y) { a = Cast<to = 1>(x) y = MatMul(a, w) }"
    model = graph_of(text, w=random(0, 4, 4))
    assert not WidenFloat16Pass()(model).modified
    assert operators(model) == ["Cast", "MatMul"]
