"""Bias correction: a quantized product keeps the mean output that the exact one has.

E[W x] - E[Q(W) Q(x)] over the calibration data goes into the bias, where it costs nothing
("Data-Free Quantization", arXiv 1906.04721, section 4.2, with means that were observed).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.hessian import Moments
from ..calibrate.observers.reduce import constant, initializer_array
from ..graph.sites import Site
from ..numerics.weight import QuantizedWeight
from .qdq.linear import insert_behind
from .ranges import site_node

Floats = NDArray[np.float64]


def mean_shift(weight: NDArray[np.float32], rounded: QuantizedWeight, moments: Moments) -> Floats:
    """W E[x] - Q(W) E[Q(x)], [O]."""
    assert moments.plain is not None and moments.rounded is not None
    exact = weight.reshape(len(weight), -1).astype(np.float64)
    found = rounded.dequantize().reshape(exact.shape).astype(np.float64)
    shift: Floats = (exact @ moments.plain - found @ moments.rounded) / max(1, moments.count)
    return shift


def correct_bias(graph: ir.Graph, site: Site, shift: Floats) -> None:
    """Add `shift` [O] to the bias of a site that still has its float form, or give it one."""
    node = site_node(graph, site)
    user, index = (node, 2) if node.op_type != "MatMul" else added_bias(node, len(shift))
    if user is None:
        shape = (1,) * site.channel_axis + (-1,)
        held = constant(graph, f"{site.name}.mean.bias", shift.astype(np.float32).reshape(shape))
        insert_behind(graph, node.outputs[0], "Add", held, f"{site.name}/Add_mean")
        return
    bias = user.inputs[index] if len(user.inputs) > index else None
    before = np.zeros(len(shift), np.float32) if bias is None else initializer_array(bias)
    total = (before.astype(np.float64) + shift.reshape(before.shape)).astype(np.float32)
    if bias is not None and len(list(bias.uses())) == 1:
        bias.const_value = ir.tensor(total, name=bias.name)
        return
    # Equal biases of several sites are one initializer.
    user.resize_inputs(max(index + 1, len(user.inputs)))
    user.replace_input_with(index, constant(graph, f"{site.name}.mean.bias", total))


def added_bias(product: ir.Node, size: int) -> tuple[ir.Node | None, int]:
    """The Add of `size` constants that alone reads a product, and which input they are."""
    value = product.outputs[0]
    users = list(value.uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or value.is_graph_output():
        return None, 0
    index = 1 - users[0].idx
    bias = users[0].node.inputs[index]
    if bias is None or bias.const_value is None or bias.const_value.size != size:
        return None, 0
    return users[0].node, index
