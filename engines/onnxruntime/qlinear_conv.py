"""Rewrite quantized convolutions into QLinearConv, which ONNX Runtime runs fast on a CPU.

Measured on the canonical form: a symmetric INT8 convolution without a quantized output runs in
float. So each quantized convolution becomes

    Mul 1/s -> QuantizeLinear(uint8, zero point 128 - shift) -> QLinearConv -> DequantizeLinear

The zero point carries a scalar shift (and QLinearConv pads with it, so the explicit Pad goes); the
centres of channels stay a Pad and a Sub in front. The output is uint8 with a scale and zero point
per channel, which the weight scales absorb for free. Only that rounding of the output is not in
the Q/DQ graph; reports show what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import Inserter, constant_array
from ...graph.edit import producer, take_over
from ...graph.passes import ensure, remove_unused, require
from .integers import INT32_MAX, Range, Ranges, largest_sums, output_qparams, with_room_for_bias

Weight = tuple[NDArray[np.int8], NDArray[np.float32]]  # (q [O, I, kh, kw], scale [O])


@dataclass(frozen=True, slots=True)
class InputChain:
    """Hold what the nodes in front of a quantized convolution say.

    `mul` and `sub` are constants [1, C, 1, 1] that stay in front of the quantizer, None for none.
    """

    source: ir.Value
    mul: ir.Value | None
    sub: ir.Value | None
    scale: float
    shift: int
    clip: tuple[int, int] | None
    pads: tuple[int, ...]


class QLinearConvPass(ir.passes.InPlacePass):
    """Turn every quantized Conv of a canonical graph into QLinearConv.

    `ranges` holds (low [O], high [O]) of each convolution's output by node name, from calibration;
    one without stays as it is. `rewritten` names the nodes that the last call replaced, in graph
    order: an engine's report lists them, and the graph has lost them.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.ranges = ranges
        self.rewritten: tuple[str, ...] = ()

    def _range(self, node: ir.Node) -> Range | None:
        return self.ranges.get(str(node.name)) if node.op_type == "Conv" else None

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a range of another number of channels than its Conv has."""
        for node in model.graph:
            output_range = self._range(node)
            if output_range is None:
                continue
            held = producer(node.inputs[1], "DequantizeLinear")
            q = None if held is None or held.inputs[0] is None else held.inputs[0].const_value
            count = len(output_range[0])
            if q is not None and q.shape[0] != count:
                require([f"{node.name} has {q.shape[0]} output channels, and its range {count}"])

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        done = []
        for node in list(graph):
            output_range = self._range(node)
            if output_range is None:
                continue
            chain = match_chain(node)
            weight = match_weight(node)
            if chain is None or weight is None or (largest_sums(weight[0]) >= INT32_MAX).any():
                continue
            rewrite(graph, node, chain, *weight, output_range)
            done.append(str(node.name))
        self.rewritten = tuple(done)
        unused = remove_unused(graph)
        return ir.passes.PassResult(model, modified=bool(done) or unused)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a rewritten convolution that is still there."""
        nodes = [node for node in model.graph if node.op_type == "Conv"]
        ensure(f"{node.name} is still a Conv" for node in nodes if node.name in self.rewritten)


def match_chain(node: ir.Node) -> InputChain | None:
    """Return the chain [Pad] -> [Mul] -> [Sub] -> Q -> [Clip] -> DQ in front of `node`, or None."""
    dequantize = producer(node.inputs[0], "DequantizeLinear")
    if dequantize is None:
        return None
    clip = producer(dequantize.inputs[0], "Clip")
    quantize = producer((clip or dequantize).inputs[0], "QuantizeLinear")
    if quantize is None:
        return None
    scale = float(constant_array(quantize.inputs[1]))
    before = quantize
    shift, centers, smoothing = 0, None, None
    sub = inserted_producer(node, before, "Sub")
    if sub is not None:
        before = sub
        if constant_array(sub.inputs[1]).ndim == 0:
            shift = round(float(constant_array(sub.inputs[1])) / scale)
        else:
            centers = sub.inputs[1]
    mul = inserted_producer(node, before, "Mul")
    if mul is not None:
        before, smoothing = mul, mul.inputs[1]
    pad = inserted_producer(node, before, "Pad")
    pads = (
        tuple(int(v) for v in node.attributes["pads"].as_ints())
        if "pads" in node.attributes
        else ()
    )
    if pad is not None and centers is None:
        top, left, bottom, right = constant_array(pad.inputs[1])[[2, 3, 6, 7]]
        pads = (int(top), int(left), int(bottom), int(right))
        before = pad
    source = before.inputs[0]
    assert source is not None
    bounds = None
    if clip is not None:
        bounds = (int(constant_array(clip.inputs[1])), int(constant_array(clip.inputs[2])))
    return InputChain(source, smoothing, centers, scale, shift, bounds, pads)


def inserted_producer(node: ir.Node, before: ir.Node, op: str) -> ir.Node | None:
    """Return the `op` that makes the input of `before`, if it was inserted for `node`."""
    found = producer(before.inputs[0], op)
    return found if found is not None and str(found.name).startswith(f"{node.name}/") else None


def match_weight(node: ir.Node) -> Weight | None:
    """Return (q [O, I, kh, kw], scale [O]) of an INT8 weight behind a DequantizeLinear, or None."""
    dequantize = producer(node.inputs[1], "DequantizeLinear")
    if dequantize is None:
        return None
    q = constant_array(dequantize.inputs[0])
    scale = np.broadcast_to(constant_array(dequantize.inputs[1]), (q.shape[0],))
    return q.astype(np.int8), scale.astype(np.float32)


def rewrite(
    graph: ir.Graph,
    node: ir.Node,
    chain: InputChain,
    q: NDArray[np.int8],
    weight_scale: NDArray[np.float32],
    output_range: Range,
) -> None:
    add = Inserter(graph, node, numbered=True)
    x_scale = add.constant("x_scale", np.array(chain.scale, np.float32))
    x_zero = add.constant("x_zero", np.array(128 - chain.shift, np.uint8))
    value = quantize_input(add, chain, x_scale, x_zero)
    sums = q.astype(np.float64).sum(axis=(1, 2, 3)) * weight_scale
    bias = np.zeros(len(q)) if len(node.inputs) < 3 else constant_array(node.inputs[2])
    bias = bias.astype(np.float64) - chain.shift * chain.scale * sums
    strides = tuple(node.attributes["strides"].as_ints()) if "strides" in node.attributes else ()
    if q.shape[2:] == (1, 1) and not any(chain.pads) and all(v == 1 for v in strides):
        result = pointwise(
            add, value, x_zero, q, weight_scale.astype(np.float64) * chain.scale, bias
        )
    else:
        result = convolution(
            add, node, chain, value, (x_scale, x_zero), q, weight_scale, bias, output_range
        )
    take_over(result, node.outputs[0])


def quantize_input(
    add: Inserter, chain: InputChain, x_scale: ir.Value, x_zero: ir.Value
) -> ir.Value:
    """Quantize x to uint8; in front of a nearest Resize, so that a quarter is quantized."""
    resize = nearest_resize(chain.source)
    value = chain.source if resize is None else resize.inputs[0]
    assert value is not None
    if chain.mul is not None:
        value = add("Mul", value, chain.mul)
    if chain.sub is not None:
        value = add("Sub", value, chain.sub)
    value = add("QuantizeLinear", value, x_scale, x_zero)
    if chain.clip is not None:
        low, high = (np.array(np.clip(v + 128, 0, 255), np.uint8) for v in chain.clip)
        value = add("Clip", value, add.constant("u8_low", low), add.constant("u8_high", high))
    if resize is not None:
        value = add("Resize", value, *resize.inputs[1:], **dict(resize.attributes))
    return value


def pointwise(
    add: Inserter,
    value: ir.Value,
    x_zero: ir.Value,
    q: NDArray[np.int8],
    scale: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> ir.Value:
    """Add a 1x1 convolution as an integer product with a float output, which is not rounded.

    Shortcuts carry the whole residual stream: rounding the output of one cost a trained decoder
    12 dB, those of all other sites together less than 1 dB.
    """
    flat = add("Reshape", value, add.constant("flat", np.array([0, q.shape[1], -1])))
    rows = add("Transpose", flat, perm=[0, 2, 1])
    matrix = add.constant("w_codes", np.ascontiguousarray(q[:, :, 0, 0].T))
    product = add("MatMulInteger", rows, matrix, x_zero, add.constant("w_zero", np.int8(0)))
    scaled = add(
        "Mul",
        add("Cast", product, to=int(ir.DataType.FLOAT)),
        add.constant("product_scale", scale.astype(np.float32)),
    )
    shifted = add("Add", scaled, add.constant("bias", bias.reshape(1, 1, -1).astype(np.float32)))
    back = add("Transpose", shifted, perm=[0, 2, 1])
    shape = add(
        "Concat",
        add("Shape", value, start=0, end=1),
        add.constant("channels", np.array([len(q)])),
        add("Shape", value, start=2, end=4),
        axis=0,
    )
    return add("Reshape", back, shape)


def convolution(
    add: Inserter,
    node: ir.Node,
    chain: InputChain,
    value: ir.Value,
    x_qparams: tuple[ir.Value, ir.Value],
    q: NDArray[np.int8],
    weight_scale: NDArray[np.float32],
    bias: NDArray[np.float64],
    output_range: Range,
) -> ir.Value:
    """Add a QLinearConv whose uint8 output has a scale and a zero point per channel."""
    out_scale, out_zero = output_qparams(*output_range)
    centred = bias + (out_zero.astype(np.float64) - 128) * out_scale
    q, wide_scale = with_room_for_bias(q, weight_scale, centred / chain.scale)
    # The output step is 1 for all channels: the weight scale of a channel holds its real step.
    product_scale = wide_scale / out_scale
    bias_q = np.round(centred / (chain.scale * wide_scale))
    attributes = {key: value for key, value in node.attributes.items() if key != "pads"}
    quantized = add(
        "QLinearConv",
        value,
        *x_qparams,
        add.constant("w_codes", q),
        add.constant("w_scale", product_scale.astype(np.float32)),
        add.constant("w_zero", np.zeros(len(q), np.int8)),
        add.constant("y_scale", np.array(1, np.float32)),
        add.constant("y_zero", np.array(128, np.uint8)),
        add.constant("bias_q", bias_q.astype(np.int32)),
        **attributes,
        **({"pads": list(chain.pads)} if chain.pads else {}),
    )
    return add(
        "DequantizeLinear",
        quantized,
        add.constant("out_scale", out_scale.astype(np.float32)),
        add.constant("out_zero", out_zero),
        axis=1,
    )


def nearest_resize(value: ir.Value) -> ir.Node | None:
    """Return the nearest-neighbour Resize that makes `value`, if nothing else reads it."""
    node = producer(value, "Resize")
    if node is None or "mode" not in node.attributes:
        return None
    nearest = node.attributes["mode"].as_string() == "nearest"
    return node if nearest and len(value.consumers()) == 1 else None
