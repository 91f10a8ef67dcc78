from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.half_precision import (
    HalfPrecisionPass,
    HalfType,
    to_half_precision,
)
from arvg_trt.errors import BuildError

from ...graph.text import graph_of, written

CHANNELS, SIZE = 16, 8
FLOAT, HALF, INT32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32


class Graph:
    """A small FP32 graph; each method returns the name of the value it makes."""

    def __init__(self, opset: int = 21) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def const(self, name: str, array: object) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def op(self, kind: str, *inputs: str, out: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"n.{out}", **attributes))
        return out

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:]))
        values = self.random.normal(size=shape) / np.sqrt(fan_in)
        return self.const(name, values.astype(np.float32))

    def conv(self, x: str, out: str, inputs: int, outputs: int, size: int = 3) -> str:
        weight = self.weight(f"{out}.weight", outputs, inputs, size, size)
        bias = self.weight(f"{out}.bias", outputs)
        return self.op("Conv", x, weight, bias, out=out, pads=[size // 2] * 4)

    def norm(self, x: str, out: str) -> str:
        gamma = self.const(f"{out}.weight", np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32))
        beta = self.const(f"{out}.bias", np.linspace(-1, 1, CHANNELS, dtype=np.float32))
        return self.op("GroupNormalization", x, gamma, beta, out=out, num_groups=4, epsilon=1e-6)

    def silu(self, x: str, out: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x, out=f"{out}.gate"), out=out)

    def int8_conv(self, x: str, out: str, weight_scale: float = 2e-3) -> str:
        """Pad, smooth, shift, Quantize, Dequantize, Conv: the canonical form of a site."""
        pads = self.const(f"{out}.pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        factor = self.random.uniform(0.5, 2, (1, CHANNELS, 1, 1)).astype(np.float32)
        x = self.op("Pad", x, pads, out=f"{out}.padded")
        x = self.op("Mul", x, self.const(f"{out}.factor", factor), out=f"{out}.smooth")
        x = self.op("Sub", x, self.const(f"{out}.shift", np.float32(0.5)), out=f"{out}.shifted")
        scale = self.const(f"{out}.x_scale", np.float32(0.03))
        zero = self.const(f"{out}.x_zero", np.int8(0))
        x = self.op("QuantizeLinear", x, scale, zero, out=f"{out}.q")
        x = self.op("DequantizeLinear", x, scale, zero, out=f"{out}.dq")
        integers = self.random.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
        scales = np.full(CHANNELS, weight_scale, np.float32) * np.linspace(0.5, 1, CHANNELS)
        weight = self.op(
            "DequantizeLinear",
            self.const(f"{out}.weight_q", integers),
            self.const(f"{out}.weight_scale", scales.astype(np.float32)),
            out=f"{out}.weight",
            axis=0,
        )
        return self.op("Conv", x, weight, self.weight(f"{out}.bias", CHANNELS), out=out)

    def attention(self, x: str, out: str) -> str:
        flat = self.const(f"{out}.flat", np.array([0, 1, CHANNELS, -1], np.int64))
        image = self.const(f"{out}.image", np.array([0, CHANNELS, SIZE, SIZE], np.int64))
        q, k, v = (
            self.op(
                "Reshape",
                self.conv(x, f"{out}.{n}", CHANNELS, CHANNELS, 1),
                flat,
                out=f"{out}.{n}r",
            )
            for n in "qkv"
        )
        q = self.op("Transpose", q, out=f"{out}.qt", perm=[0, 1, 3, 2])
        v = self.op("Transpose", v, out=f"{out}.vt", perm=[0, 1, 3, 2])
        q = self.op(
            "Mul", q, self.const(f"{out}.scale", np.float32(CHANNELS**-0.5)), out=f"{out}.qs"
        )
        scores = self.op("Softmax", self.op("MatMul", q, k, out=f"{out}.qk"), out=f"{out}.softmax")
        mixed = self.op("MatMul", scores, v, out=f"{out}.pv")
        mixed = self.op("Transpose", mixed, out=f"{out}.pvt", perm=[0, 1, 3, 2])
        return self.op("Reshape", mixed, image, out=out)

    def model(self, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> onnx.ModelProto:
        def infos(values: dict[str, tuple]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(n, kind, dims) for n, (kind, *dims) in values.items()
            ]

        constants = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", infos(inputs), infos(outputs), constants)
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


IMAGE = {"image": (FLOAT, "n", 3, SIZE, SIZE)}


def decoder_like(weight_scale: float = 2e-3) -> onnx.ModelProto:
    g = Graph()
    x = g.conv("image", "conv_in", 3, CHANNELS)
    h = g.int8_conv(g.silu(g.norm(x, "norm"), "silu"), "block.conv", weight_scale)
    x = g.op("Add", x, h, out="residual")
    x = g.op("Add", x, g.attention(x, "attn"), out="mixed")
    scales = g.const("up.scales", np.array([1, 1, 2, 2], np.float32))
    x = g.op("Resize", x, "", scales, out="up", mode="nearest")
    g.op("ConvTranspose", x, g.weight("haar", CHANNELS, 3, 2, 2), out="out", strides=[2, 2])
    return g.model(IMAGE, {"out": (FLOAT, "n", 3, 4 * SIZE, 4 * SIZE)})


def encoder_like() -> onnx.ModelProto:
    g = Graph()
    latent = g.conv("image", "latent", 3, 3, 1)
    levels = np.array([8, 8, 5]).reshape(1, 3, 1, 1)
    half_range = g.const("half_range", ((levels - 1) * 1.001 / 2).astype(np.float32))
    offset = g.const("offset", np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32))
    x = g.op("Add", latent, g.const("shift", np.full((1, 3, 1, 1), 0.1, np.float32)), out="shifted")
    x = g.op("Mul", g.op("Tanh", x, out="tanh"), half_range, out="ranged")
    x = g.op("Round", g.op("Sub", x, offset, out="bounded"), out="round")
    x = g.op("Cast", x, out="digits", to=INT32)
    basis = g.const("basis", np.array([1, 8, 64], np.int32).reshape(1, 3, 1, 1))
    x = g.op("Mul", x, basis, out="weighted")
    axes = g.const("axes", np.array([1], np.int64))
    g.op("ReduceSum", x, axes, out="indices", keepdims=0)
    outputs = {"latent": (FLOAT, "n", 3, SIZE, SIZE), "indices": (INT32, "n", SIZE, SIZE)}
    return g.model(IMAGE, outputs)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value; strict inference refuses types that contradict the operators."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {
        **{value.name: value.type.tensor_type.elem_type for value in values},
        **{constant.name: constant.data_type for constant in graph.initializer},
    }


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def input_types(model: onnx.ModelProto, name: str) -> list[int]:
    known = types(model)
    return [known[value] for value in node(model, name).input if value]


def images(count: int = 2) -> np.ndarray:
    shape = (count, 3, SIZE, SIZE)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("weight_scale", [2e-3, 1e-6])
def test_twin_is_valid_and_close_to_fp32(weight_scale: float) -> None:
    model = decoder_like(weight_scale)
    converted = to_half_precision(model)
    onnx.checker.check_model(converted, full_check=True)
    want, got = run(model, image=images())["out"], run(converted, image=images())["out"]
    assert got.dtype == np.float32
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < error < 3e-3


def test_conversion_leaves_the_given_model_alone() -> None:
    model = decoder_like()
    before = model.SerializeToString()
    to_half_precision(model)
    assert model.SerializeToString() == before


def test_conversion_is_deterministic() -> None:
    model = decoder_like()
    assert (
        to_half_precision(model).SerializeToString() == to_half_precision(model).SerializeToString()
    )


def test_products_run_in_half_and_keep_their_names() -> None:
    converted = to_half_precision(decoder_like())
    for name in ("n.conv_in", "n.block.conv", "n.attn.q", "n.attn.qk", "n.attn.pv", "n.out"):
        assert set(input_types(converted, name)) == {HALF}, name
    assert input_types(converted, "n.up") == [HALF, FLOAT]  # Resize takes its scales in FP32 only


def test_norm_runs_in_fp32_with_its_affine_constants() -> None:
    converted = to_half_precision(decoder_like())
    assert input_types(converted, "n.norm") == [FLOAT] * 3
    assert input_types(converted, "n.silu") == [HALF] * 2


def test_a_norm_written_out_keeps_its_squares_and_sums_in_fp32() -> None:
    g = Graph()
    x = g.conv("image", "features", 3, CHANNELS)
    axes = g.const("axes", np.array([2, 3]))
    mean = g.op("ReduceMean", x, axes, out="mean")
    centred = g.op("Sub", x, mean, out="centred")
    square = g.op("Mul", centred, centred, out="square")
    variance = g.op("ReduceMean", square, axes, out="variance")
    epsilon = g.const("epsilon", np.float32(1e-6))
    deviation = g.op("Sqrt", g.op("Add", variance, epsilon, out="safe"), out="deviation")
    g.conv(g.op("Div", centred, deviation, out="normed"), "y", CHANNELS, 3)
    converted = to_half_precision(g.model(IMAGE, {"y": (FLOAT, "n", 3, SIZE, SIZE)}))
    for name in ("n.square", "n.safe", "n.deviation"):
        assert set(input_types(converted, name)) == {FLOAT}, name
    for name in ("n.centred", "n.normed", "n.y"):
        assert set(input_types(converted, name)) == {HALF}, name


def test_a_mean_that_a_product_reads_leaves_the_product_in_half() -> None:
    g = Graph()
    axes = g.const("axes", np.array([2, 3]))
    mean = g.op("ReduceMean", g.conv("image", "f", 3, CHANNELS), axes, out="pooled")
    g.conv(mean, "y", CHANNELS, 3, 1)
    converted = to_half_precision(g.model(IMAGE, {"y": (FLOAT, "n", 3, 1, 1)}))
    assert set(input_types(converted, "n.y")) == {HALF}


def test_quantize_takes_an_fp32_scale_and_dequantize_a_half_one() -> None:
    converted = to_half_precision(decoder_like())
    assert input_types(converted, "n.block.conv.q")[:2] == [FLOAT, FLOAT]
    assert input_types(converted, "n.block.conv.dq")[1] == HALF
    assert input_types(converted, "n.block.conv.weight")[1] == HALF
    assert input_types(converted, "n.block.conv.shifted") == [HALF, HALF]


def test_scale_too_small_for_half_keeps_its_dequantize_in_fp32() -> None:
    converted = to_half_precision(decoder_like(weight_scale=1e-6))
    assert input_types(converted, "n.block.conv.weight")[1] == FLOAT
    assert set(input_types(converted, "n.block.conv")) == {HALF}
    assert input_types(
        to_half_precision(decoder_like(1e-6), dtype="bfloat16"), "n.block.conv.weight"
    )[1] == (TensorProto.BFLOAT16)


def test_attention_is_half_throughout_and_other_softmax_fp32() -> None:
    assert input_types(to_half_precision(decoder_like()), "n.attn.softmax") == [HALF]
    g = Graph()
    g.op("Softmax", g.conv("image", "logits", 3, 4, 1), out="p", axis=1)
    converted = to_half_precision(g.model(IMAGE, {"p": (FLOAT, "n", 4, SIZE, SIZE)}))
    assert input_types(converted, "n.p") == [FLOAT]


def test_indices_are_those_of_fp32_arithmetic_on_the_twins_latent() -> None:
    converted = to_half_precision(encoder_like())
    onnx.checker.check_model(converted, full_check=True)
    got = run(converted, image=images(64))
    levels = np.array([8, 8, 5]).reshape(1, 3, 1, 1)
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(got["latent"].astype(np.float64) + 0.1) * (levels - 1) * 1.001 / 2 - offset
    digits = np.round(bounded) * np.array([1, 8, 64]).reshape(1, 3, 1, 1)
    assert got["indices"].dtype == np.int32
    assert np.array_equal(got["indices"], digits.sum(axis=1))
    assert set(input_types(converted, "n.latent")) == {HALF}
    for name in ("n.shifted", "n.tanh", "n.ranged", "n.bounded", "n.round", "n.digits"):
        assert set(input_types(converted, name)) == {FLOAT}, name


def test_codes_from_integers_stay_fp32_up_to_the_first_convolution() -> None:
    g = Graph()
    x = g.op("Cast", "codes", out="float", to=FLOAT)
    x = g.op("Div", x, g.const("width", np.full((1, 3, 1, 1), 4, np.float32)), out="scaled")
    g.conv(x, "out", 3, 4, 1)
    model = g.model({"codes": (INT32, "n", 3, 8, 8)}, {"out": (FLOAT, "n", 4, 8, 8)})
    converted = to_half_precision(model)
    assert input_types(converted, "n.scaled") == [FLOAT, FLOAT]
    assert set(input_types(converted, "n.out")) == {HALF}


def test_features_that_meet_converted_integers_stay_half() -> None:
    g = Graph()
    x = g.op("Cast", "codes", out="position", to=FLOAT)
    x = g.op("Add", g.conv("image", "features", 3, 3), x, out="sum")
    g.conv(x, "out", 3, 4, 1)
    inputs = {**IMAGE, "codes": (INT32, "n", 3, SIZE, SIZE)}
    converted = to_half_precision(g.model(inputs, {"out": (FLOAT, "n", 4, SIZE, SIZE)}))
    assert input_types(converted, "n.sum") == [HALF, HALF]


def test_constant_that_both_precisions_read_exists_in_both() -> None:
    g = Graph()
    x = g.norm(g.conv("image", "conv", 3, CHANNELS), "norm")
    g.const("norm.weight", np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32))
    g.op("Conv", x, g.weight("w", 4, CHANNELS, 1, 1), out="y")
    rows = g.op("Mul", "rows", "norm.weight", out="scaled_rows")
    inputs = {**IMAGE, "rows": (FLOAT, 2, CHANNELS)}
    outputs = {"y": (FLOAT, "n", 4, SIZE, SIZE), rows: (FLOAT, 2, CHANNELS)}
    converted = to_half_precision(g.model(inputs, outputs))
    assert input_types(converted, "n.norm")[1] == FLOAT
    assert input_types(converted, "n.scaled_rows") == [HALF, HALF]


@pytest.mark.parametrize("make", [decoder_like, encoder_like])
def test_casts_are_few(make: Callable[[], onnx.ModelProto]) -> None:
    converted = to_half_precision(make())
    casts = {n.output[0]: n for n in converted.graph.node if n.op_type == "Cast"}
    assert not [n.name for n in casts.values() if n.input[0] in casts]
    sources = [(n.input[0], n.attribute[0].i) for n in casts.values()]
    assert len(sources) == len(set(sources))


def test_named_nodes_stay_fp32_with_their_dequantized_weights() -> None:
    converted = to_half_precision(decoder_like(), keep_fp32=["n.block.conv", "n.out"])
    assert set(input_types(converted, "n.block.conv")) == {FLOAT}
    assert input_types(converted, "n.block.conv.weight")[1] == FLOAT
    assert set(input_types(converted, "n.out")) == {FLOAT}
    assert np.isfinite(run(converted, image=images())["out"]).all()


def test_bfloat16_twin_is_valid() -> None:
    converted = to_half_precision(decoder_like(), dtype="bfloat16")
    onnx.checker.check_model(converted, full_check=True)
    assert set(input_types(converted, "n.conv_in")) == {TensorProto.BFLOAT16}
    assert set(input_types(converted, "n.out")) == {FLOAT}  # no bfloat16 ConvTranspose in TensorRT


def overflowing() -> onnx.ModelProto:
    g = Graph()
    g.op("Mul", "image", g.const("huge.factor", np.array([7e4], np.float32)), out="out")
    return g.model(IMAGE, {"out": (FLOAT, "n", 3, SIZE, SIZE)})


def test_a_node_with_a_constant_beyond_half_stays_fp32() -> None:
    converted = to_half_precision(overflowing())
    assert np.array_equal(run(converted, image=images())["out"], images() * np.float32(7e4))


def test_a_batch_norm_with_a_variance_beyond_half_keeps_its_values() -> None:
    g = Graph()
    rng = np.random.default_rng(3)
    scale, bias, mean = (rng.standard_normal(3).astype(np.float32) for _ in range(3))
    wide = np.array([1e5, 2e6, 1.0], np.float32)
    held = [g.const(f"bn.{k}", v) for k, v in enumerate((scale, bias, mean, wide))]
    g.op("BatchNormalization", "image", *held, out="y")
    g.op("Relu", "y", out="out")
    model = g.model(IMAGE, {"out": (FLOAT, "n", 3, SIZE, SIZE)})
    x = images()
    columns = [v.reshape(1, 3, 1, 1).astype(np.float64) for v in (scale, bias, mean, wide)]
    s, b, m, v = columns
    exact = np.maximum((x - m) / np.sqrt(v + 1e-5) * s + b, 0)
    np.testing.assert_allclose(run(to_half_precision(model), image=x)["out"], exact, atol=2e-3)


def masked(*, read_elsewhere: bool) -> onnx.ModelProto:
    """softmax(image + mask); the mask is the lowest float32 in every column but the first two."""
    g = Graph()
    lowest = np.full(8, np.finfo(np.float32).min)
    lowest[:2] = 0
    total = g.op("Add", "image", g.const("mask", lowest.astype(np.float32)), out="total")
    scores = g.op("Softmax", total, out="p", axis=-1)
    g.op("MatMul", scores, g.const("values", np.eye(8, dtype=np.float32)), out="out")
    outputs = {"out": (FLOAT, "n", 3, SIZE, SIZE)}
    if read_elsewhere:
        g.op("Relu", "mask", out="other")
        outputs["other"] = (FLOAT, 8)
    return g.model(IMAGE, outputs)


def test_a_masks_lowest_number_becomes_that_of_half() -> None:
    model = masked(read_elsewhere=False)
    found = run(to_half_precision(model), image=images())["out"]
    exact = run(model, image=images())["out"]
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert not found[..., 2:].any() and exact[..., :2].all()


def test_a_number_beyond_half_that_is_no_mask_is_read_in_fp32() -> None:
    model = masked(read_elsewhere=True)
    found, exact = (run(m, image=images()) for m in (to_half_precision(model), model))
    np.testing.assert_allclose(found["out"], exact["out"], atol=2e-3)
    assert np.array_equal(found["other"], exact["other"])


def test_infinite_mask_is_kept() -> None:
    g = Graph()
    g.op("Add", "image", g.const("mask", np.array([0.0] + [-np.inf] * 7, np.float32)), out="out")
    converted = to_half_precision(g.model(IMAGE, {"out": (FLOAT, "n", 3, SIZE, SIZE)}))
    assert np.isneginf(run(converted, image=images())["out"][..., 1:]).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scale_that_is_none_is_refused_by_name(scale: float) -> None:
    with pytest.raises(BuildError, match=r"scale block\.conv\.weight_scale is not positive and f"):
        to_half_precision(decoder_like(weight_scale=scale))


def test_unknown_name_in_keep_fp32_is_refused() -> None:
    with pytest.raises(BuildError, match=r"^n\.typo: keep_fp32"):
        to_half_precision(decoder_like(), keep_fp32=["n.typo"])


@pytest.mark.parametrize("opset", [17, 23])
def test_opset_without_half_scales_is_refused(opset: int) -> None:
    g = Graph(opset)
    g.op("Relu", "image", out="out")
    with pytest.raises(BuildError, match=f"opset {opset} has no float16 copy .*opset 21"):
        to_half_precision(g.model(IMAGE, {"out": (FLOAT, "n", 3, SIZE, SIZE)}))


CACHED = """g (float[n, 4] x, float16[p, 4] past) => (float[n, 4] y, float16[q, 4] present) {
    [key] y = MatMul(x, w)
    [narrow] h = Cast<to = 10>(y)
    [grow] present = Concat<axis = 0>(past, h)
}"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_float16_keeps_its_type_at_both_ends(dtype: HalfType) -> None:
    """An output that was float32 comes back to it; one that was float16 before does not."""
    model = graph_of(CACHED, w=np.eye(4, dtype=np.float32))
    converted = to_half_precision(model, dtype=dtype)
    onnx.checker.check_model(converted, full_check=True)
    types = [
        v.type.tensor_type.elem_type for v in (*converted.graph.input, *converted.graph.output)
    ]
    assert types == [FLOAT, HALF, FLOAT, HALF]
    kinds = [node.op_type for node in converted.graph.node]
    assert kinds == ["Cast", "MatMul", "Cast", "Concat", "Cast"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_converting_a_copy_again_changes_nothing(dtype: HalfType) -> None:
    for make in (decoder_like, encoder_like, overflowing):
        model = ir.from_proto(to_half_precision(make(), dtype=dtype))
        before = written(model)
        assert not HalfPrecisionPass(dtype=dtype)(model).modified
        assert written(model) == before


def test_a_node_that_would_read_both_types_is_found() -> None:
    text = "g (float[n, 4] x, float16[n, 4] h) => (float[n, 4] y) { [sum] y = Add(x, h) }"
    with pytest.raises(ir.passes.PostconditionError, match="sum reads both FP32 and float16"):
        HalfPrecisionPass().ensures(graph_of(text))


def test_a_constant_has_to_be_an_initializer_first() -> None:
    text = """g (float[n, 2] x) => (float[n, 2] y) {
        [c] c = Constant<value = float[2] {1.0, 2.0}>()
        [sum] y = Add(x, c)
    }"""
    with pytest.raises(ir.passes.PreconditionError, match="c is a Constant"):
        HalfPrecisionPass()(graph_of(text))
    assert [n.op_type for n in to_half_precision(graph_of(text)).graph.node] == [
        "Cast",
        "Add",
        "Cast",
    ]
