from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from arvg_trt.calibrate.qdq import insert_qdq
from arvg_trt.engines.integer_linear import rewrite_linears
from arvg_trt.runtime.sessions.onnxruntime import fast_session, reference_session

from ..linear_cases import FLOAT_LINEARS, INTEGER_LINEARS


@pytest.mark.parametrize("label", INTEGER_LINEARS)
def test_integer_product_equals_the_qdq_graph(label: str, tmp_path: Path) -> None:
    case = INTEGER_LINEARS[label]()
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    assert rewrite_linears(model) == ["linear"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    ir.save(model, tmp_path / "engine.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "engine.onnx").graph.node]
    assert (
        "MatMulIntegerToFloat" in kinds
        and "MatMul" not in kinds
        and "DequantizeLinear" not in kinds
    )
    for session in (fast_session, reference_session):
        (found,) = session(tmp_path / "engine.onnx").run({"x": case.x}).values()
        np.testing.assert_allclose(found, case.expected, atol=2e-6 * np.abs(case.expected).max())


@pytest.mark.parametrize("label", FLOAT_LINEARS)
def test_linear_with_a_float_input_is_left_alone(label: str) -> None:
    case = FLOAT_LINEARS[label]()
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert rewrite_linears(model) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
