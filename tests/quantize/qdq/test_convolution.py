"""Inserted graphs against a float64 simulation, and the algebra of smoothing, shift and fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.runtime.sessions.open import reference_session

from ...families.tiny import TinyExport, TinyQuantized
from ...graph.builders import INTEGER_CASES, ConvCase, make_conv_case


def inserted(case: ConvCase) -> onnx.ModelProto:
    model = case.model()
    insert_qdq(model.graph, case.sites, case.chosen)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return proto


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what the reference session computes: every node as written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def without_activation_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with Q -> [Clip] -> DQ of activations taken out; weights keep their DQ."""
    made_by = {out: node for node in model.graph.node for out in node.output}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        source = node.input[0]
        while source in made_by and made_by[source].op_type in (
            "DequantizeLinear",
            "Clip",
            "QuantizeLinear",
        ):
            source = made_by[source].input[0]
        node.input[0] = source
    return model


def near(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_graph_computes_what_float64_simulation_says(conv_case: ConvCase) -> None:
    found = run(inserted(conv_case), {"x": conv_case.x})
    for name, wanted in conv_case.expected.items():
        near(found[f"{name}.out"], wanted, 2e-6)


def test_without_rounding_the_graph_is_the_float_one(conv_case: ConvCase) -> None:
    found = run(without_activation_rounding(inserted(conv_case)), {"x": conv_case.x})
    wanted = run(conv_case.proto, {"x": conv_case.x})
    assert found.keys() == wanted.keys()
    for name in wanted:
        near(found[name], wanted[name], 1e-5)


def test_rounding_of_the_input_changes_the_output(integer_case: ConvCase) -> None:
    """Guards the two tests above: a graph that quantizes nothing would fail here."""
    found = run(inserted(integer_case), {"x": integer_case.x})
    wanted = run(integer_case.proto, {"x": integer_case.x})
    for name in integer_case.expected:
        assert np.abs(found[f"{name}.out"] - wanted[f"{name}.out"]).max() > 1e-3


def test_every_dequantize_feeds_one_product(conv_case: ConvCase) -> None:
    model = inserted(conv_case)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            readers = [n for n in model.graph.node if node.output[0] in n.input]
            assert [n.op_type for n in readers] == ["Conv"]


def test_integer_site_has_scalar_scale_and_no_zero_point(integer_case: ConvCase) -> None:
    model = inserted(integer_case)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(found) == 3 * len(integer_case.expected)  # Q, DQ, and DQ of the weight
    for node in found:
        assert not constants[node.input[2]].any()
        assert constants[node.input[2]].dtype == np.int8
        if not any(a.name == "axis" for a in node.attribute):
            assert constants[node.input[1]].shape == ()


def test_nothing_unused_stays_in_the_graph(conv_case: ConvCase) -> None:
    model = inserted(conv_case)
    read = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= read


def test_float_weights_are_gone_from_quantized_graphs(conv_case: ConvCase) -> None:
    held = {t.name for t in inserted(conv_case).graph.initializer}
    assert not held & {f"{name}.weight" for name in conv_case.expected}


def test_folded_norm_absorbs_smoothing_and_shift() -> None:
    model = inserted(INTEGER_CASES["folded norm, shifted"]())
    kinds = [node.op_type for node in model.graph.node]
    assert "Mul" not in kinds and "Sub" not in kinds
    by_name = {n.name: n for n in model.graph.node}
    # The other norm shares its affine with the folded one, and keeps it.
    assert list(by_name["other.node"].input[1:]) == ["gamma", "beta"]


def test_shifted_site_pads_with_the_zero_of_its_input() -> None:
    """Zeros behind the shift would stand for x = 117 steps, far outside this tolerance."""
    case = make_conv_case(shift=117, smoothed=False)
    ones = np.full_like(case.x, 1.0)
    found = run(inserted(case), {"x": ones})["c.out"]
    wanted = run(case.proto, {"x": ones})["c.out"]
    quantized = case.chosen["c"].quantized
    assert quantized is not None
    # Each input is off by at most half a step of 0.037.
    limit = 0.5 * 0.037 * np.abs(quantized.dequantize()).sum(axis=(1, 2, 3))
    assert (np.abs(found - wanted) <= limit.reshape(1, -1, 1, 1) * 1.001).all()


def test_site_without_a_bias_gets_one_for_its_shift() -> None:
    case = make_conv_case(shift=60)
    for node in case.proto.graph.node:
        if node.op_type == "Conv":
            del node.input[2]
    bias = next(t for t in case.proto.graph.initializer if t.name == "c.bias")
    offset = numpy_helper.to_array(bias).reshape(1, -1, 1, 1)
    case.proto.graph.initializer.remove(bias)
    near(run(inserted(case), {"x": case.x})["c.out"], case.expected["c"] - offset, 2e-6)


def test_site_that_is_not_named_keeps_its_node() -> None:
    case = make_conv_case()
    model = case.model()
    insert_qdq(model.graph, case.sites, {})
    assert ir.to_proto(model).graph.node == case.proto.graph.node


# The whole model.


def load(folder: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(folder / f"{graph}.onnx")


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_quantized_model_is_valid_and_each_dequantize_feeds_one_product(
    tiny_int8: TinyQuantized, graph: str
) -> None:
    onnx.checker.check_model(tiny_int8.folder / f"{graph}.onnx", full_check=True)
    model = load(tiny_int8.folder, graph)
    readers = [name for node in model.graph.node for name in node.input]
    dequantized = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    results = [r for r in tiny_int8.results if r.graph == graph]
    inputs = [r for r in results if r.activation != "float"]
    weights = [r for r in results if r.weight.startswith("INT")]
    assert len(dequantized) == len(inputs) + len(weights) > 10
    assert all(readers.count(name) == 1 for name in dequantized)


def test_excluded_sites_keep_float16_weights(tiny_di: TinyExport, tiny_int8: TinyQuantized) -> None:
    excluded = [s for s in tiny_di.sites.sites if s.excluded and s.weight and s.role != "patcher"]
    assert len(excluded) == 6
    for site in excluded:
        model = load(tiny_int8.folder, site.graph)
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        node = next(n for n in model.graph.node if n.name == site.node)
        wanted = tiny_di.model.get_parameter(f"{site.name}.weight").numpy()
        assert np.array_equal(held[node.input[1]], wanted.astype(np.float16).astype(np.float32))
        assert node.input[0] == site.input


@pytest.mark.parametrize("name", ["tiny_int8", "tiny_log4"])
def test_packed_weights_are_what_the_graphs_hold(
    tiny_di: TinyExport, name: str, request: pytest.FixtureRequest
) -> None:
    quantized: TinyQuantized = request.getfixturevalue(name)
    packed, floats = load_packed_weights(quantized.folder / "weights.safetensors")
    sites = {s.name: s for s in tiny_di.sites.sites}
    assert packed.keys() == {r.name for r in quantized.results if r.weight_sqnr_db is not None}
    for graph in ("encoder", "decoder"):
        model = load(quantized.folder, graph)
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        made_by = {node.output[0]: node for node in model.graph.node}
        for node in model.graph.node:
            site = sites.get(node.name)
            if site is None or site.weight is None or site.role == "patcher":
                continue
            source = made_by.get(node.input[1])
            if source is None:
                value = held[node.input[1]]
            else:
                scale = held[source.input[1]].reshape(-1, 1, 1, 1)
                value = held[source.input[0]].astype(np.float32) * scale
            if site.name in packed:
                assert np.array_equal(packed.pop(site.name).dequantize(), value)
            else:
                stored = floats[f"{site.name}.weight"]
                assert stored.dtype == np.float16 and np.array_equal(stored, value)
    assert not packed


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_quantized_model_without_rounding_is_the_model_with_the_packed_weights(
    tiny_di: TinyExport, tiny_int8: TinyQuantized, graph: str
) -> None:
    packed, floats = load_packed_weights(tiny_int8.folder / "weights.safetensors")
    model = load(tiny_di.folder, graph)
    constants = {t.name: t for t in model.graph.initializer}
    for site in tiny_di.sites.of_graph(graph):
        if site.name in packed:
            value = packed[site.name].dequantize().astype(np.float64)
            if f"{site.name}.smoothing" in floats:
                value /= floats[f"{site.name}.smoothing"].reshape(1, -1, 1, 1)
            if f"{site.name}.center" in floats:
                # Only what lies around the centres meets the rounded weight.
                exact = numpy_helper.to_array(constants[site.weight]).astype(np.float64)
                center = floats[f"{site.name}.center"].astype(np.float64)
                if f"{site.name}.smoothing" in floats:
                    center = center * floats[f"{site.name}.smoothing"]
                missing = ((exact - value) * center.reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3))
                bias = numpy_helper.to_array(constants[site.bias]) + missing
                array = numpy_helper.from_array(bias.astype(np.float32), site.bias)
                constants[site.bias].CopyFrom(array)
        elif f"{site.name}.weight" in floats:
            value = floats[f"{site.name}.weight"]
        else:
            continue
        array = numpy_helper.from_array(value.astype(np.float32), site.weight)
        constants[site.weight].CopyFrom(array)
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {"indices": rng.integers(0, 64000, (1, 3, 4), np.int32)}
    if graph == "encoder":
        feeds = {"image": rng.uniform(-1, 1, (1, 3, 24, 32)).astype(np.float32)}
    wanted = run(model, feeds)
    found = run(without_activation_rounding(load(tiny_int8.folder, graph)), feeds)
    output = "latent" if graph == "encoder" else "image"
    near(found[output], wanted[output], 1e-5)
    rounded = reference_session(tiny_int8.folder / f"{graph}.onnx").run(feeds)
    assert np.abs(rounded[output] - wanted[output]).max() > 1e-3


def test_shifts_and_smoothing_are_in_use_in_the_quantized_model(tiny_int8: TinyQuantized) -> None:
    """Guards the tests above against a plan in which nothing needs them."""
    activations = [s.activation for s in tiny_int8.plan.sites if s.activation is not None]
    assert sum(a.shift != 0 for a in activations) > 5
    assert sum(a.shift == 0 for a in activations) > 2
    norms = [n.name for n in load(tiny_int8.folder, "decoder").graph.initializer]
    assert any("folded_scale" in name for name in norms)
