from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from arvg_trt.engines.onnxruntime.build import rewrite_graph
from arvg_trt.engines.onnxruntime.matmul_integer import DOMAIN, MatMulIntegerPass
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.scheme import ActivationFormat, WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.quantize.qdq.nodes import SiteWeights
from arvg_trt.runtime.sessions.open import fast_session, mapped_session

from ...quantize.qdq.linear_cases import FLOAT_LINEARS, INTEGER_LINEARS


def linears_of(model: ir.Model) -> list[str]:
    linears = MatMulIntegerPass()
    changed = linears(model).modified
    assert changed == bool(linears.rewritten)
    return list(linears.rewritten)


@pytest.mark.parametrize("label", INTEGER_LINEARS)
def test_integer_product_equals_the_qdq_graph(label: str, tmp_path: Path) -> None:
    case = INTEGER_LINEARS[label]()
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    assert linears_of(model) == ["linear"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    ir.save(model, tmp_path / "engine.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "engine.onnx").graph.node]
    assert (
        "MatMulIntegerToFloat" in kinds
        and "MatMul" not in kinds
        and "DequantizeLinear" not in kinds
    )
    for session in (fast_session, mapped_session):  # as engines are opened
        (found,) = session(tmp_path / "engine.onnx").run({"x": case.x}).values()
        np.testing.assert_allclose(found, case.expected, atol=2e-6 * np.abs(case.expected).max())


@pytest.mark.parametrize(("inputs", "rewritten"), [(66_000, True), (66_600, False)])
def test_sums_that_can_leave_int32_stay_float(inputs: int, rewritten: bool, tmp_path: Path) -> None:
    """All at the end of the grid: 66,600 * 255 * 127 is above 2^31."""
    weight = QuantizedWeight(
        WeightFormat(bits=8), np.full((2, inputs), 127, np.int8), np.full(2, 1e-4, np.float32)
    )
    held = {"w": weight.dequantize().T.copy()}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        "case",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.serde.deserialize_model(proto)
    site = Site(
        name="linear",
        graph="g",
        role="fc1",
        op="MatMul",
        node="linear",
        weight="w",
        bias=None,
        input="x",
        output="y",
        weight_shape=(inputs, 2),
        channel_axis=1,
    )
    activation = ActivationFormat(bits=8, scale=0.5)
    insert_qdq(model.graph, [site], {"linear": SiteWeights(weight, activation=activation)})
    assert bool(linears_of(model)) == rewritten
    ir.save(model, tmp_path / "g.onnx")
    x = np.full((1, inputs), 127 * 0.5, np.float32)
    (found,) = fast_session(tmp_path / "g.onnx").run({"x": x}).values()
    np.testing.assert_allclose(found, inputs * 127 * 1e-4 * 127 * 0.5, rtol=1e-4)


@pytest.mark.parametrize("label", FLOAT_LINEARS)
def test_linear_with_a_float_input_is_left_alone(label: str) -> None:
    case = FLOAT_LINEARS[label]()
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert linears_of(model) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    stored = label in ("weight-only", "weight-only, one scale", "weight-only Gemm")
    assert rewrite_graph(model, {}).precision == ("W8 + FP32" if stored else "FP32")


def test_product_of_two_activations_equals_the_qdq_graph(tmp_path: Path) -> None:
    """Both operands are activations, the left one of 6 bits."""
    rng = np.random.default_rng(3)
    grids = {"q": (0.05, -32, 31), "k": (0.02, -128, 127)}
    shapes = {"q": (2, 3, 4, 8), "k": (2, 3, 8, 5)}
    feeds = {
        name: (
            rng.integers(1.3 * low, 1.3 * high, shapes[name]) + rng.uniform(-0.4, 0.4, shapes[name])
        ).astype(np.float32)
        * np.float32(scale)
        for name, (scale, low, high) in grids.items()
    }
    nodes, constants = [], []
    make = helper.make_node
    for name, (scale, low, high) in grids.items():
        values = {"scale": np.float32(scale), "zero": np.int8(0), "low": np.int8(low)}
        values["high"] = np.int8(high)
        for label, held in values.items():
            constants.append(numpy_helper.from_array(np.array(held), f"{name}_{label}"))
        one, two, three = (f"{name}{k}" for k in (1, 2, 3))
        grid = [f"{name}_scale", f"{name}_zero"]
        nodes.append(make("QuantizeLinear", [name, *grid], [one], name=one))
        nodes.append(make("Clip", [one, f"{name}_low", f"{name}_high"], [two], name=two))
        nodes.append(make("DequantizeLinear", [two, *grid], [three], name=three))
    nodes.append(helper.make_node("MatMul", ["q3", "k3"], ["out"], name="product"))
    info = helper.make_tensor_value_info
    ends = [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    out = info("out", onnx.TensorProto.FLOAT, (2, 3, 4, 5))
    graph = helper.make_graph(nodes, "g", ends, [out], constants)
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    assert linears_of(model) == ["product"]
    ir.save(model, tmp_path / "engine.onnx")
    q, k = (
        np.clip(np.rint(feeds[name].astype(np.float64) / scale), low, high) * scale
        for name, (scale, low, high) in grids.items()
    )
    for session in (fast_session, mapped_session):  # as engines are opened
        (found,) = session(tmp_path / "engine.onnx").run(feeds).values()
        np.testing.assert_allclose(found, q @ k, atol=1e-5)


def test_a_second_call_names_what_it_replaced_itself() -> None:
    case = INTEGER_LINEARS["MatMul"]()
    models = [case.model(), case.model()]
    for model in models:
        insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    linears = MatMulIntegerPass()
    calls = [(linears(model).modified, linears.rewritten) for model in (*models[:1], *models)]
    assert calls == [(True, ("linear",)), (False, ()), (True, ("linear",))]


def test_an_operator_without_its_domain_breaks_the_promise() -> None:
    case = INTEGER_LINEARS["MatMul"]()
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    linears = MatMulIntegerPass()
    linears(model)
    del model.opset_imports[DOMAIN]
    with pytest.raises(ir.passes.PostconditionError, match=r"does not import com\.microsoft"):
        linears.ensures(model)
