"""Write the rounding of Q/DQ pairs out in elementary operators, where OpenVINO gets it wrong.

With its passes for integers switched off OpenVINO 2026.4.1 still computes a pair as one
FakeQuantize, and merges the product in front of it that scales each channel: every channel is then
rounded by the scale of the first. With them on it moves a rounding in front of the Concat that it
stands behind, and a convolution there may lose its shift. Operators that it does not know as a
rounding stay where they are; the convolution behind them computes in integers all the same.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

Floats = NDArray[np.float64]


SCALES = ("Multiply", "Divide", "Add", "Subtract")
RESTORES = ("Convert", "Subtract", "Multiply")


def write_rounding_out(model: ov.Model, *, every: bool) -> int:
    """Replace each FakeQuantize of constant ranges in place; returns how many there were.

    If not `every`, then those alone that stand between a Concat and a convolution.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or not (every or joins_convolution(node)):
            continue
        ends = [node.input_value(k).get_node() for k in range(1, 5)]
        if any(end.get_type_name() != "Constant" for end in ends):
            continue
        levels = int(node.get_attributes()["levels"])
        low, high, out_low, out_high = (end.data.astype(np.float64) for end in ends)
        rounded = rounding(node.input_value(0), low, high, out_low, out_high, levels)
        rounded.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(rounded.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def joins_convolution(node: ov.Node) -> bool:
    """Return whether a rounding is that of what a Concat gives to a convolution."""
    above = node.input_value(0).get_node()
    while above.get_type_name() in SCALES:
        inputs = [above.input_value(k).get_node() for k in range(2)]
        varying = [each for each in inputs if each.get_type_name() != "Constant"]
        if len(varying) != 1:
            return False
        (above,) = varying
    if above.get_type_name() != "Concat":
        return False
    below = [node]
    while below and below[0].get_type_name() in ("FakeQuantize", *RESTORES):
        below = [port.get_node() for port in below[0].output(0).get_target_inputs()]
    return any("Convolution" in each.get_type_name() for each in below)


def rounding(
    value: ov.Output, low: Floats, high: Floats, out_low: Floats, out_high: Floats, levels: int
) -> ov.Node:
    """Return a value rounded to the levels between `low` and `high`, as `out_low` to `out_high`.

    As QuantizeLinear does, it divides by the step and rounds ties to even before it saturates.
    """
    step, out_step = (high - low) / (levels - 1), (out_high - out_low) / (levels - 1)
    first = np.rint(low / step)
    whole = ops.round(ops.divide(value, _constant(step)), "half_to_even")
    held = ops.minimum(ops.maximum(whole, _constant(first)), _constant(first + levels - 1))
    return ops.add(ops.multiply(held, _constant(out_step)), _constant(out_low - first * out_step))


def _constant(values: Floats) -> ov.Node:
    return ops.constant(values.astype(np.float32))
