"""Sites without the rounding of their inputs compute what their graphs do without it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from arvg_trt.engines.faster.in_float import compute_in_float
from arvg_trt.errors import BuildError
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.qparams import QParams
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.chains import ends_of
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.quantize.qdq.per_token import TokenSite, rewrite_token_linear
from arvg_trt.runtime.sessions.open import open_session

from ...graph.builders import INTEGER_CASES, ConvCase
from ...quantize.qdq.linear_cases import INTEGER_LINEARS
from ...quantize.qdq.test_per_token import FORMS, IDS, POSITIONS, ROW_IDS, SHIFTS, graph, site

ROUNDING = ("QuantizeLinear", "Clip", "DequantizeLinear")


def without_rounding(model: ir.Model) -> ir.Model:
    """Return a copy in which the products read what was rounded; weights keep their DQ."""
    copy = ir.serde.deserialize_model(ir.to_proto(model))
    for node in list(copy.graph):
        if node.op_type in ("Conv", "MatMul"):
            value = node.inputs[0]
            assert value is not None
            while (made := value.producer()) is not None and made.op_type in ROUNDING:
                value = made.inputs[0]
                assert value is not None
            node.replace_input_with(0, value)
    return copy


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    data = ir.to_proto(model).SerializeToString()
    return open_session(Path("case.onnx"), optimized=False, graph=data).run(feeds)


def require_equal_without_rounding(
    quantized: ir.Model, fp32: ir.Graph, sites: list[Site], feeds: dict[str, np.ndarray]
) -> ir.Model:
    """Return the graph with its sites in float, which computes the same as without rounding."""
    wanted = run(without_rounding(quantized), feeds)
    rounded = run(quantized, feeds)
    compute_in_float(quantized.graph, sites, {each.name: ends_of(fp32, each) for each in sites})
    onnx.checker.check_model(ir.to_proto(quantized), full_check=True)
    found = run(quantized, feeds)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        largest = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=3e-6 * largest)
    assert any(np.abs(rounded[name] - value).max() > 1e-4 for name, value in wanted.items())
    assert not {node.op_type for node in quantized.graph} & set(ROUNDING)
    return quantized


@pytest.mark.parametrize("label", INTEGER_CASES)
def test_convolution_is_a_plain_one_again(label: str) -> None:
    case: ConvCase = INTEGER_CASES[label]()
    fp32, model = case.model().graph, case.model()
    insert_qdq(model.graph, case.sites, case.chosen)
    made = require_equal_without_rounding(model, fp32, list(case.sites), {"x": case.x})
    kinds = [node.op_type for node in made.graph]
    assert kinds == [node.op_type for node in fp32]
    pads = [n.attributes["pads"].as_ints() for n in made.graph if "pads" in n.attributes]
    assert pads == [n.attributes["pads"].as_ints() for n in fp32 if "pads" in n.attributes]


@pytest.mark.parametrize("label", INTEGER_LINEARS)
def test_linear_is_a_product_and_its_bias(label: str) -> None:
    case = INTEGER_LINEARS[label]()
    fp32, model = case.model().graph, case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    made = require_equal_without_rounding(model, fp32, [case.site], {"x": case.x})
    kinds = [node.op_type for node in made.graph]
    assert kinds.count("MatMul") == 1 and set(kinds) <= {"MatMul", "Add", "LayerNormalization"}
    has_bias = case.site.bias is not None or np.any(case.chosen.center)
    assert kinds.count("Add") <= 1 if has_bias else True


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("form", FORMS)
def test_scales_of_tokens_are_taken_out_on_both_sides(form: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    bias, positions = form != "no bias", form.startswith("gathered")
    rank = 2 if form == "rank 2" else 3
    count = 1 if form in ("one grid", "rank 2") else POSITIONS
    step = 0.05 * np.exp(rng.normal(0, 0.8, count))
    grid = QParams.from_shift(step, SHIFTS[kind][-count:], 8)
    proto = graph(bias, positions, rank, form == "gathered by row")
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight = quantize_weight(held["w"].T, WeightFormat(bits=8))
    fp32, model = (ir.serde.deserialize_model(proto) for _ in range(2))
    own = site(bias, positions, rank)
    node = next(n for n in model.graph if n.name == "linear")
    rewrite_token_linear(model.graph, node, own, TokenSite(weight, grid))
    ids = ROW_IDS if form == "gathered by row" else IDS
    length = len(IDS) if positions else POSITIONS
    x = rng.normal(0, 3, (2, length, held["w"].shape[0])).astype(np.float32)
    x = x if rank == 3 else x.reshape(-1, x.shape[-1])
    feeds = {"x": x, **({"ids": ids} if positions else {})}
    made = require_equal_without_rounding(model, fp32.graph, [own], feeds)
    kinds = sorted(n.op_type for n in made.graph)
    assert kinds == (["Add", "MatMul"] if bias else ["MatMul"])


def test_nodes_that_quantize_did_not_write_are_refused_by_name() -> None:
    case = INTEGER_LINEARS["one scale for the weight"]()
    fp32, model = case.model().graph, case.model()
    odd = msgspec.structs.replace(case.site)
    with pytest.raises(BuildError, match=r"block\.linear has other nodes than `quantize` writes"):
        compute_in_float(model.graph, [odd], {odd.name: ends_of(fp32, odd)})
