"""Weights of few bits beside float inputs: expanded once, bit for bit, or left packed by rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.onnxruntime import generator, weights
from arvg_trt.engines.onnxruntime.build import rewrite_graph
from arvg_trt.engines.onnxruntime.weights import expand_weights, mark_expanded
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.runtime.sessions.open import (
    EXPANDED,
    expands_weights,
    fast_session,
    reference_session,
)
from arvg_trt.runtime.tokenizer import ImageTokenizer

from ...command_line import Finished, arvg
from ...minis.minis import Quantized
from ...quantize.qdq.linear_cases import INTEGER_LINEARS

INPUTS, OUTPUTS, BLOCK = 128, 48, 32
FORMS = ("INT8 per channel", "INT8 per tensor", "INT4 in blocks")


def weight_only(form: str, rows: int | str = "rows") -> ir.Model:
    """One product of x [rows, 128] with a weight of few bits."""
    rng = np.random.default_rng(3)
    node = {"inputs": ["q", "scale", "zero"], "outputs": ["w"], "name": "linear.weight/DQ"}
    info = helper.make_tensor_value_info
    if form == "INT4 in blocks":
        q = rng.integers(-8, 8, (INPUTS, OUTPUTS)).astype(ml_dtypes.int4)
        scale = rng.uniform(0.01, 0.1, (INPUTS // BLOCK, OUTPUTS)).astype(np.float32)
        dequantize = helper.make_node(
            "DequantizeLinear", ["q", "scale"], ["w"], name=node["name"], axis=0, block_size=BLOCK
        )
        constants = [ir.serde.serialize_tensor(ir.tensor(q, name="q"))]
    else:
        q = rng.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8)
        shape = (OUTPUTS,) if form == "INT8 per channel" else ()
        scale = np.asarray(rng.uniform(0.001, 0.01, shape), np.float32)
        axis = {"axis": 1} if shape else {}
        dequantize = helper.make_node("DequantizeLinear", **node, **axis)
        zero = numpy_helper.from_array(np.zeros(shape, np.int8), "zero")
        constants = [numpy_helper.from_array(q, "q"), zero]
    constants.append(numpy_helper.from_array(scale, "scale"))
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")
    made = helper.make_graph(
        [dequantize, product],
        "case",
        [info("x", TensorProto.FLOAT, [rows, INPUTS])],
        [info("y", TensorProto.FLOAT, [rows, OUTPUTS])],
        constants,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.serde.deserialize_model(proto)


def saved(model: ir.Model, path: Path) -> Path:
    onnx.save(ir.to_proto(model), path)
    return path


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("form", FORMS)
def test_opened_graph_computes_what_fp32_weights_do_bit_for_bit(
    form: str, rows: int, tmp_path: Path
) -> None:
    model = weight_only(form)
    if form == "INT4 in blocks":
        assert mark_expanded(model, rows=2)
    packed = saved(model, tmp_path / "packed.onnx")
    assert expands_weights(packed.read_bytes())
    assert expand_weights(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    plain = saved(model, tmp_path / "plain.onnx")
    x = np.random.default_rng(0).standard_normal((rows, INPUTS)).astype(np.float32)
    found, wanted = (fast_session(path).run({"x": x})["y"] for path in (packed, plain))
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_expanded_weight_is_what_onnx_runtime_makes_of_it(form: str, tmp_path: Path) -> None:
    model = weight_only(form)
    shown = saved(model, tmp_path / "shown.onnx")
    proto = onnx.load(shown)
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    onnx.save(proto, shown)
    x = np.zeros((1, INPUTS), np.float32)
    wanted = reference_session(shown).run({"x": x}, ["w"])["w"]
    expand_weights(model)
    (held,) = model.graph.initializers.values()
    assert held.const_value is not None
    assert held.const_value.numpy().tobytes() == wanted.tobytes()
    assert not expand_weights(model)  # nothing is left to expand


def test_int4_stays_packed_at_one_row_and_where_it_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def marked(form: str, rows: int | None) -> bool:
        model = weight_only(form)
        done = mark_expanded(model, rows)
        data = ir.to_proto(model).SerializeToString()
        assert done == (EXPANDED in model.metadata_props)
        assert expands_weights(data) == (done or form != "INT4 in blocks")
        return done

    assert not marked("INT4 in blocks", 1)
    assert marked("INT4 in blocks", 2) and marked("INT4 in blocks", None)
    assert not marked("INT8 per channel", 2)  # needs no mark
    monkeypatch.setattr(weights, "MOST_EXPANDED", 4 * INPUTS * OUTPUTS - 1)
    assert not marked("INT4 in blocks", 2)


def test_graphs_that_round_inputs_are_fused_until_they_are_an_engine() -> None:
    case = INTEGER_LINEARS["one scale for the weight"]()
    model = case.model()
    assert not expands_weights(ir.to_proto(model).SerializeToString())
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    assert not expands_weights(ir.to_proto(model).SerializeToString())
    rewrite_graph(model, {})
    engine = ir.to_proto(model)
    assert not expands_weights(engine.SerializeToString())  # no weight is left to widen
    beside = ir.to_proto(weight_only("INT8 per channel"))
    engine.graph.node.extend(beside.graph.node)
    assert expands_weights(engine.SerializeToString())


def test_engines_bundles_and_packed_bundles_compute_the_same(
    finished: Finished, tmp_path: Path
) -> None:
    """Weights alone in 8 bits: what is opened is FP32 to the last bit, wherever it lies."""
    copy = Path(shutil.copytree(finished.workspace, tmp_path / "ws"))
    weights_only = ("--activation-bits", 32, "--encoder-bits", 8, "--decoder-bits", 8)
    for words in (
        ("quantize", copy, "--name", "w8", *weights_only),
        ("build", copy, "--name", "w8"),
        ("bundle", copy, "--name", "w8", "-o", tmp_path / "plain.tar"),
        ("bundle", copy, "--name", "w8", "--packed", "-o", tmp_path / "packed.tar"),
    ):
        outcome = arvg(*words)
        assert outcome.code == 0, outcome
    engine = copy / "engines" / "w8" / "onnxruntime"
    kinds = [node.op_type for node in onnx.load(engine / "encoder.onnx").graph.node]
    assert "DequantizeLinear" in kinds and "QuantizeLinear" not in kinds
    expanded = tmp_path / "expanded"
    shutil.copytree(engine, expanded)
    (expanded / "manifest.json").unlink()
    for graph in ("encoder", "decoder"):
        model = ir.load(engine / f"{graph}.onnx")
        assert expand_weights(model)
        ir.save(model, expanded / f"{graph}.onnx", external_data=f"{graph}.onnx.data")
    image = to_model(load_image(finished.validation / "astronaut.png"))
    found = []
    for graph in ("encoder", "decoder"):
        runs = []
        for folder in (engine, expanded):
            session = fast_session(folder / f"{graph}.onnx")
            feeds = {"image": image} if graph == "encoder" else {"indices": found[0]["indices"]}
            runs.append(session.run(feeds))
        for name, value in runs[0].items():
            assert value.tobytes() == runs[1][name].tobytes()
        found.append(runs[0])
    for place in (engine, tmp_path / "plain.tar", tmp_path / "packed.tar"):
        tokenizer = ImageTokenizer.open(place, device="cpu")
        made = tokenizer.decode(tokenizer.encode(image)[0])
        np.testing.assert_array_equal(made, found[1]["image"])


def test_generators_say_what_is_expanded_or_hold_it_expanded(
    quantized_of: Callable[[str], Quantized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INT4 of a step on two rows is expanded at load; with a graph a step, weights are FP32."""
    copy = Path(shutil.copytree(quantized_of("rar").workspace, tmp_path / "ws"))
    blockwise = ("--quantize-method", "blockwise", "--block-size", 32, "--weight-bits", 4)
    outcome = arvg("quantize", copy, "--name", "w4", *blockwise)
    assert outcome.code == 0, outcome
    engine, images = copy / "engines" / "w4" / "onnxruntime", []
    for fixed in (False, True):
        monkeypatch.setattr(generator, "has_fixed_shapes", lambda export, fixed=fixed: fixed)
        shutil.rmtree(engine, ignore_errors=True)
        outcome = arvg("build", copy, "--name", "w4")
        assert outcome.code == 0, outcome
        step = onnx.load(engine / "step.onnx", load_external_data=False)
        kinds = {node.op_type for node in step.graph.node}
        assert ("DequantizeLinear" in kinds) is not fixed
        assert (EXPANDED in {each.key for each in step.metadata_props}) is not fixed
        assert expands_weights((engine / "step.onnx").read_bytes()) is not fixed
        images.append(Generator.open(engine, device="cpu").generate([1, 2], seed=4))
    np.testing.assert_array_equal(images[0].tokens, images[1].tokens)
    np.testing.assert_array_equal(images[0].images, images[1].images)
    assert weights.most_rows(copy / "export")["step"] > 1
