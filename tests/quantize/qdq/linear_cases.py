"""Small graphs with one linear, and what their Q/DQ form must compute in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.graph.sites import Site
from arvg_trt.numerics.scheme import ActivationFormat, WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.qdq.nodes import SiteWeights

INPUTS, OUTPUTS = 12, 10
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LinearCase:
    proto: onnx.ModelProto
    site: Site
    chosen: SiteWeights
    x: Floats
    expected: NDArray[np.float64]

    def model(self) -> ir.Model:
        return ir.serde.deserialize_model(self.proto)


def make_linear_case(
    *,
    op: str = "MatMul",
    rank: int = 3,
    bias: bool = True,
    bits: int = 8,
    shift: int = 0,
    centered: bool = False,
    smoothed: bool = True,
    weight_format: WeightFormat | None = None,
    weight_only: bool = False,
    floating: bool = False,
    norm: bool = False,
) -> LinearCase:
    """`op` is MatMul, Gemm or GemmT (the weight is [O, I]); `norm`: behind a folded LayerNorm."""
    rng = np.random.default_rng(5)
    scale = float(np.float32(0.043 * 2 ** (8 - bits)))
    quantizes = not (weight_only or floating)
    smoothing = np.exp(rng.normal(0, 0.6, INPUTS)).astype(np.float32)
    if not smoothed or not quantizes:
        smoothing = np.ones(INPUTS, np.float32)
    center = rng.normal(0, 40 * scale, INPUTS).astype(np.float32) if centered else None
    weight = rng.normal(0, 0.2, (OUTPUTS, INPUTS)) * np.exp(rng.normal(0, 1, (OUTPUTS, 1)))
    quantized = quantize_weight(weight.astype(np.float32), weight_format or WeightFormat(bits=8))
    activation = ActivationFormat(bits=bits, scale=scale, shift=shift, centered=centered)
    chosen = SiteWeights(
        None if floating else quantized,
        floating=quantized.dequantize() if floating else None,
        activation=activation if quantizes else None,
        smoothing=smoothing if smoothed and quantizes else None,
        center=center,
    )
    offsets = rng.normal(0, 1, OUTPUTS).astype(np.float32) if bias else np.zeros(OUTPUTS)

    # Steps a little beyond both ends of the grid, and never close to a rounding tie.
    low = shift - 2 ** (bits - 1)
    size = (2, 7, INPUTS)[3 - rank :]
    steps = rng.integers(low - 9, low + 2**bits + 9, size) + rng.uniform(-0.4, 0.4, size)
    moved = 0.0 if center is None else center.astype(np.float64)
    x = ((steps * scale + moved) * smoothing).astype(np.float32)
    nodes, constants, source = [], {}, "x"
    wide = x.astype(np.float64)
    if norm:
        x = rng.normal(0, 1, size).astype(np.float32)
        constants = {
            "gamma": rng.normal(1, 0.3, INPUTS).astype(np.float32),
            "beta": rng.normal(0, 0.3, INPUTS).astype(np.float32),
        }
        nodes.append(
            helper.make_node(
                "LayerNormalization", ["x", "gamma", "beta"], ["normed"], name="norm", epsilon=1e-6
            )
        )
        source = "normed"
        wide = x.astype(np.float64)
        wide = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
        wide = wide * constants["gamma"] + constants["beta"]
    grid = wide
    if quantizes:
        exact = (wide / smoothing - moved) / scale
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-4
        grid = np.clip(np.rint(exact), low, low + 2**bits - 1) * scale + moved
    expected = grid @ quantized.dequantize().astype(np.float64).T + offsets

    held = quantized.dequantize() / smoothing
    constants["weight"] = held if op == "GemmT" else np.ascontiguousarray(held.T)
    if bias:
        constants["bias"] = offsets
    if op == "MatMul":
        out = "product" if bias else "out"
        nodes.append(helper.make_node("MatMul", [source, "weight"], [out], name="linear"))
        if bias:
            nodes.append(helper.make_node("Add", ["product", "bias"], ["out"], name="add"))
    else:
        inputs = [source, "weight", *(["bias"] if bias else [])]
        transposed = {"transB": 1} if op == "GemmT" else {}
        nodes.append(helper.make_node("Gemm", inputs, ["out"], name="linear", **transposed))
    site = Site(
        name="block.linear",
        graph="encoder",
        role="linear",
        op=op.removesuffix("T"),
        node="linear",
        weight="weight",
        bias="bias" if bias else None,
        input=source,
        output="out",
        weight_shape=constants["weight"].shape,
        channel_axis=rank - 1,
        fold=("gamma", "beta") if norm else None,
    )
    info = helper.make_tensor_value_info
    shape = ["n", "t", INPUTS][3 - rank :]
    graph = helper.make_graph(
        nodes,
        "case",
        [info("x", TensorProto.FLOAT, shape)],
        [info("out", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return LinearCase(model, site, chosen, x, expected)


PER_TENSOR = WeightFormat(bits=8, granularity="per_tensor")
INTEGER_LINEARS: dict[str, Callable[[], LinearCase]] = {
    "MatMul": partial(make_linear_case),
    "MatMul, rank 2": partial(make_linear_case, rank=2),
    "MatMul, no bias": partial(make_linear_case, bias=False),
    "MatMul, no bias, shifted": partial(make_linear_case, bias=False, shift=90),
    "shifted": partial(make_linear_case, shift=117),
    "shifted down, no smoothing": partial(make_linear_case, shift=-80, smoothed=False),
    "centered": partial(make_linear_case, centered=True),
    "one scale for the weight": partial(make_linear_case, weight_format=PER_TENSOR),
    "4 bits": partial(make_linear_case, bits=4, weight_format=WeightFormat(bits=4)),
    "Gemm": partial(make_linear_case, op="Gemm", rank=2, shift=30),
    "Gemm, transposed weight": partial(make_linear_case, op="GemmT", rank=2, shift=30),
    "Gemm, no bias, centered": partial(
        make_linear_case, op="GemmT", rank=2, bias=False, centered=True
    ),
    "folded norm": partial(make_linear_case, norm=True),
    "folded norm, shifted": partial(make_linear_case, norm=True, shift=12),
    "folded norm, centered": partial(make_linear_case, norm=True, centered=True),
}
FLOAT_LINEARS: dict[str, Callable[[], LinearCase]] = {
    "weight-only": partial(make_linear_case, weight_only=True),
    "weight-only, one scale": partial(make_linear_case, weight_only=True, weight_format=PER_TENSOR),
    "weight-only log": partial(
        make_linear_case, weight_only=True, weight_format=WeightFormat(bits=4, grid="log")
    ),
    "weight-only Gemm": partial(make_linear_case, op="GemmT", rank=2, weight_only=True),
    "float": partial(make_linear_case, floating=True),
    "float Gemm": partial(make_linear_case, op="GemmT", rank=2, floating=True),
}
