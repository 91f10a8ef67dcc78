"""Single convolutions in a graph, quantized, with their answers in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.graph.sites import Site
from arvg_trt.numerics.scheme import ActivationFormat, WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, quantize_weight
from arvg_trt.quantize.qdq.nodes import SiteWeights

Floats = NDArray[np.float32]


CHANNELS, OUTPUTS, SIZE, GROUPS = 8, 6, 7, 4


@dataclass(frozen=True)
class ConvCase:
    """A float graph with one site per name in `chosen`, and what its Q/DQ graph must compute.

    The float weights are exactly those that the codes stand for (over the smoothing), so with
    activation Q/DQ taken out the rewritten graph must equal the float one.
    """

    proto: onnx.ModelProto
    sites: tuple[Site, ...]
    chosen: dict[str, SiteWeights]
    x: Floats
    expected: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def model(self) -> ir.Model:
        return ir.serde.deserialize_model(self.proto)

    def ranges(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(low, high) per output channel of what the Q/DQ graph computes."""
        axes = (0, 2, 3)
        return {n: (e.min(axis=axes), e.max(axis=axes)) for n, e in self.expected.items()}


def float_graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[str], channels: int
) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "case",
        [info("x", TensorProto.FLOAT, ["n", channels, "h", "w"])],
        [info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def conv_site(name: str, source: str, weight: QuantizedWeight, **changes: object) -> Site:
    return msgspec.structs.replace(
        Site(
            name=name,
            graph="encoder",
            role="conv",
            op="Conv",
            node=name,
            weight=f"{name}.weight",
            bias=f"{name}.bias",
            input=source,
            output=f"{name}.out",
            weight_shape=weight.q.shape,
        ),
        **changes,
    )


def on_grid(
    x: NDArray[np.float64],
    smoothing: Floats,
    activation: ActivationFormat,
    center: Floats | None = None,
) -> NDArray[np.float64]:
    """Values of the smoothed tensor on the unsigned grid: integers from shift - 2^(b-1) up.

    With a `center` [C] in smoothed units, the grid of each channel lies around it.
    """
    assert activation.scale is not None
    offset = (np.zeros(x.shape[1]) if center is None else center.astype(np.float64)).reshape(
        1, -1, 1, 1
    )
    steps = x / smoothing.astype(np.float64).reshape(1, -1, 1, 1) - offset
    steps = steps / activation.scale
    fraction = np.abs(steps - np.floor(steps) - 0.5)
    assert fraction.min() > 1e-4, "a value at a rounding tie: choose another seed"
    low = activation.shift - 2 ** (activation.bits - 1)
    points = np.clip(np.round(steps), low, low + 2**activation.bits - 1)
    return points * activation.scale + offset


def convolve(
    x: NDArray[np.float64],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    strides: list[int],
    pads: list[int],
) -> NDArray[np.float64]:
    """A float64 convolution with zero padding (top, left, bottom, right)."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out = torch.nn.functional.conv2d(
        torch.from_numpy(padded),
        torch.from_numpy(weight.astype(np.float64)),
        torch.from_numpy(bias.astype(np.float64)),
        stride=tuple(strides),
    )
    return out.numpy()


def make_conv_case(
    *,
    kernel: int = 3,
    stride: int = 1,
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    bits: int = 8,
    shift: int = 0,
    centered: bool = False,
    smoothed: bool = True,
    resize: bool = False,
    weight_format: WeightFormat | None = None,
    weight_only: bool = False,
) -> ConvCase:
    rng = np.random.default_rng(3)
    scale = float(np.float32(0.037 * 2 ** (8 - bits)))
    activation = ActivationFormat(bits=bits, scale=scale, shift=shift, centered=centered)
    center = rng.normal(0, 60 * scale, CHANNELS).astype(np.float32) if centered else None
    smoothing = np.ones(CHANNELS, np.float32)
    if smoothed and not weight_only:
        smoothing = np.exp(rng.normal(0, 0.7, CHANNELS)).astype(np.float32)
    weight = rng.normal(0, 0.2, (OUTPUTS, CHANNELS, kernel, kernel)).astype(np.float32)
    quantized = quantize_weight(weight, weight_format or WeightFormat(bits=8))
    bias = rng.normal(0, 1, OUTPUTS).astype(np.float32)
    # Steps a little beyond both ends of the grid, and never close to a rounding tie.
    low = shift - 2 ** (bits - 1)
    size = (2, CHANNELS, SIZE, SIZE)
    steps = rng.integers(low - 9, low + 2**bits + 9, size) + rng.uniform(-0.4, 0.4, size)
    offset = 0 if center is None else center.reshape(1, -1, 1, 1)
    x = ((steps * scale + offset) * smoothing.reshape(1, -1, 1, 1)).astype(np.float32)

    nodes, source = [], "x"
    constants = {
        "c.weight": quantized.dequantize() / smoothing.reshape(1, -1, 1, 1),
        "c.bias": bias,
    }
    if resize:
        constants["sizes"] = np.array([1, 1, 2, 2], np.float32)
        nodes.append(
            helper.make_node(
                "Resize",
                ["x", "", "sizes"],
                ["large"],
                name="resize",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        )
        source = "large"
    strides = [stride, stride]
    nodes.append(
        helper.make_node(
            "Conv",
            [source, "c.weight", "c.bias"],
            ["c.out"],
            name="c",
            pads=list(pads),
            strides=strides,
            kernel_shape=[kernel, kernel],
        )
    )
    chosen = SiteWeights(
        quantized,
        activation=None if weight_only else activation,
        smoothing=smoothing if smoothed and not weight_only else None,
        center=center,
    )
    wide = x.astype(np.float64)
    if resize:
        wide = wide.repeat(2, axis=2).repeat(2, axis=3)
    if center is not None:
        # Zeros are padded before the rounding: they too land on the grid around the centre.
        wide = np.pad(wide, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        pads_left = [0] * 4
    else:
        pads_left = list(pads)
    grid = wide if weight_only else on_grid(wide, smoothing, activation, center)
    return ConvCase(
        float_graph(nodes, constants, ["c.out"], CHANNELS),
        (conv_site("c", source, quantized),),
        {"c": chosen},
        x,
        {"c": convolve(grid, quantized.dequantize(), bias, strides, pads_left)},
    )


def make_folded_case(*, shift: int = 20, centered: bool = False) -> ConvCase:
    """A GroupNorm that feeds q, k and v; another norm shares its affine initializers."""
    rng = np.random.default_rng(6)
    x = rng.normal(1, 2, (2, CHANNELS, 3, 5)).astype(np.float32)
    gamma = rng.normal(1, 0.3, CHANNELS).astype(np.float32)
    beta = rng.normal(0.5, 0.3, CHANNELS).astype(np.float32)
    smoothing = np.exp(rng.normal(0, 0.5, CHANNELS)).astype(np.float32)
    scale = float(np.float32(0.031))
    activation = ActivationFormat(bits=8, scale=scale, shift=shift, centered=centered)
    center = rng.normal(0, 1, CHANNELS).astype(np.float32) if centered else None
    groups = x.astype(np.float64).reshape(2, GROUPS, -1)
    centred = groups - groups.mean(axis=2, keepdims=True)
    normed = centred / np.sqrt(groups.var(axis=2, keepdims=True) + 1e-6)
    affine = [v.astype(np.float64).reshape(1, -1, 1, 1) for v in (gamma, beta)]
    grid = on_grid(normed.reshape(x.shape) * affine[0] + affine[1], smoothing, activation, center)

    constants: dict[str, np.ndarray] = {"gamma": gamma, "beta": beta}
    nodes = [
        helper.make_node(
            "GroupNormalization",
            ["x", "gamma", "beta"],
            [out],
            name=f"{out}.node",
            num_groups=GROUPS,
            epsilon=1e-6,
        )
        for out in ("normed", "other")
    ]
    sites, chosen, expected = [], {}, {}
    for name in "qkv":
        weight = rng.normal(0, 0.3, (OUTPUTS, CHANNELS, 1, 1)).astype(np.float32)
        quantized = quantize_weight(weight, WeightFormat(bits=8))
        bias = rng.normal(0, 1, OUTPUTS).astype(np.float32)
        constants[f"{name}.weight"] = quantized.dequantize() / smoothing.reshape(1, -1, 1, 1)
        constants[f"{name}.bias"] = bias
        inputs = ["normed", f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], name=name))
        others = tuple(n for n in "qkv" if n != name)
        sites.append(
            conv_site(name, "normed", quantized, shares_input_with=others, fold=("gamma", "beta"))
        )
        chosen[name] = SiteWeights(
            quantized, activation=activation, smoothing=smoothing, center=center
        )
        expected[name] = convolve(grid, quantized.dequantize(), bias, [1, 1], [0] * 4)
    outputs = ["q.out", "k.out", "v.out", "other"]
    graph = float_graph(nodes, constants, outputs, CHANNELS)
    return ConvCase(graph, tuple(sites), chosen, x, expected)


POINT = {"kernel": 1, "pads": (0, 0, 0, 0)}


INTEGER_CASES: dict[str, Callable[[], ConvCase]] = {
    "3x3 symmetric, no smoothing": partial(make_conv_case, smoothed=False),
    "3x3 smoothed": partial(make_conv_case),
    "3x3 shifted": partial(make_conv_case, shift=117),
    "3x3 shifted down, per-tensor weight": partial(
        make_conv_case,
        shift=-90,
        smoothed=False,
        weight_format=WeightFormat(bits=8, granularity="per_tensor"),
    ),
    "stride 2, padded right and below": partial(
        make_conv_case, stride=2, pads=(0, 0, 1, 1), shift=60
    ),
    "1x1": partial(make_conv_case, **POINT),
    "1x1 shifted": partial(make_conv_case, **POINT, shift=100),
    "1x1 stride 2": partial(make_conv_case, **POINT, stride=2, shift=5),
    "6 bits, shifted": partial(
        make_conv_case, bits=6, shift=25, weight_format=WeightFormat(bits=6)
    ),
    "4 bits, symmetric": partial(make_conv_case, bits=4, weight_format=WeightFormat(bits=4)),
    "behind a nearest resize": partial(make_conv_case, resize=True, shift=50),
    "folded norm, shifted": partial(make_folded_case, shift=20),
    "folded norm": partial(make_folded_case, shift=0),
    "folded norm, centered": partial(make_folded_case, shift=0, centered=True),
    "3x3 centered": partial(make_conv_case, centered=True),
    "3x3 centered, no smoothing": partial(make_conv_case, centered=True, smoothed=False),
    "1x1 centered": partial(make_conv_case, **POINT, centered=True),
    "4 bits, centered, stride 2": partial(
        make_conv_case,
        centered=True,
        bits=4,
        stride=2,
        pads=(0, 0, 1, 1),
        weight_format=WeightFormat(bits=4),
    ),
    "behind a nearest resize, centered": partial(make_conv_case, resize=True, centered=True),
}


WEIGHT_ONLY_CASES: dict[str, Callable[[], ConvCase]] = {
    f"weight-only {grid} {granularity}": partial(
        make_conv_case,
        weight_only=True,
        weight_format=WeightFormat(bits=4, grid=grid, granularity=granularity),
    )
    for grid in ("uniform", "log")
    for granularity in ("per_channel", "per_tensor")
}


@pytest.fixture(params=INTEGER_CASES)
def integer_case(request: pytest.FixtureRequest) -> ConvCase:
    """A site with quantized input and weight."""
    return INTEGER_CASES[request.param]()


@pytest.fixture(params=INTEGER_CASES | WEIGHT_ONLY_CASES)
def conv_case(request: pytest.FixtureRequest) -> ConvCase:
    """A site of any form."""
    return (INTEGER_CASES | WEIGHT_ONLY_CASES)[request.param]()
