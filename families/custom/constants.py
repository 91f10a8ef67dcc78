"""Fold constants of a custom graph, and widen float16 to float32."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from ...errors import ExportError
from ...graph.builder import constant
from ...graph.passes import ensure, require, structure

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
WIDENED = "widened"
# Attributes that name the type of a node's output.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
PLAIN_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)


class FoldConstantsPass(ir.passes.InPlacePass):
    """Compute once what constants alone decide; bodies of If, Loop and Scan stay.

    Quantized weights behind DequantizeLinear become float32 too. Identities are passed over. A node
    that ONNX's reference implementation cannot evaluate stays, and what it feeds.

    Raises:
        ExportError: the graph cannot be simplified at all.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for functions, in which a constant is not seen."""
        require(f"the function {f.name} is not inlined" for f in model.functions.values())

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = structure(model.graph)
        fold_where_possible(model)
        while fold_split(model.graph) or fold_dequantized(model.graph):
            fold_where_possible(model)  # what reads the results
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, structure(model.graph) != before)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a constant that nothing reads."""
        ensure(
            f"nothing reads {value.name}"
            for value in model.graph.initializers.values()
            if not (value.uses() or value.is_graph_output() or value.is_graph_input())
        )


def fold_where_possible(model: ir.Model) -> None:
    """Fold constants with onnxscript, without the nodes that it fails at.

    Raises:
        ExportError: it fails before it evaluates a node.
    """
    tried: list[ir.Node] = []
    failed: set[ir.Node] = set()

    def is_chosen(node: ir.Node) -> bool:
        if node.graph is not model.graph or node in failed or dequantized(node) is not None:
            return False
        tried.append(node)
        return True

    while True:
        tried.clear()
        try:
            fold_constants(
                model,
                onnx_shape_inference=False,
                input_size_limit=sys.maxsize,
                output_size_limit=sys.maxsize,
                should_fold=is_chosen,
            )
            return
        except Exception as error:  # whatever an operator's reference implementation raises
            if not tried:
                raise ExportError(
                    f"constants cannot be folded: {' '.join(str(error).split())[:200]}",
                    do="check the file with onnx.checker",
                ) from error
            failed.add(tried[-1])


def fold_split(graph: ir.Graph) -> bool:
    """Replace every Split of a constant by constants, such as one weight of q, k and v.

    Returns whether there was one.
    """
    found = False
    for node in list(graph):
        held = node.inputs[0] if node.op_type == "Split" and node.domain == "" else None
        if held is None or held.const_value is None or not held.is_initializer():
            continue
        array = held.const_value.numpy()
        axis = node.attributes.get_int("axis", 0)
        sizes = node.inputs[1] if len(node.inputs) > 1 else None
        if sizes is not None and sizes.const_value is None:
            continue
        if any(value.is_graph_output() for value in node.outputs):
            continue
        if sizes is not None and sizes.const_value is not None:
            ends = np.cumsum(sizes.const_value.numpy())[:-1]
        else:
            step = -(-array.shape[axis] // len(node.outputs))
            ends = np.arange(1, len(node.outputs)) * step
        for value, part in zip(node.outputs, np.split(array, ends, axis=axis), strict=True):
            name, value.name = str(value.name), None
            replace_by_constant(graph, value, name, np.ascontiguousarray(part))
        graph.remove(node, safe=True)
        found = True
    return found


def fold_dequantized(graph: ir.Graph) -> bool:
    """Replace every DequantizeLinear of constants by its values, each made in one array.

    ONNX's reference implementation holds three of that size. Returns whether there was one.
    """
    found = False
    for node in list(graph):
        held = dequantized(node)
        if held is None:
            continue
        quantized, scale, zero = held
        shape = [1] * len(quantized.shape)
        if scale.size > 1:
            shape[node.attributes.get_int("axis", 1)] = -1
        array = quantized.numpy().astype(np.float32)
        if zero is not None:
            array -= zero.numpy().reshape(shape)
        array *= scale.numpy().reshape(shape)
        value = node.outputs[0]
        name, value.name = str(value.name), None
        replace_by_constant(graph, value, name, array)
        graph.remove(node, safe=True)
        found = True
    return found


def dequantized(
    node: ir.Node,
) -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol | None] | None:
    """Return the constants (values, scale, zero point or None) of a plain DequantizeLinear.

    Plain are integers of 8 or 16 bits with float32 scales, one for all or one an index of an axis,
    whose result no output of the graph is.
    """
    if node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    given = [v for v in node.inputs if v is not None]
    if any(v.const_value is None or not v.is_initializer() for v in given):
        return None
    if node.outputs[0].is_graph_output() or {"block_size", "output_dtype"} & {*node.attributes}:
        return None
    quantized, scale, *rest = (v.const_value for v in given)
    assert quantized is not None and scale is not None
    zero = rest[0] if rest else None
    axis, count = node.attributes.get_int("axis", 1), scale.size
    rank = len(quantized.shape)
    if count == 0:
        return None
    fits = count == 1 or (-rank <= axis < rank and len(scale.shape) == 1)
    if quantized.dtype not in PLAIN_INTEGERS or scale.dtype != FLOAT or not fits:
        return None
    if count > 1 and count != quantized.shape.numpy()[axis]:
        return None
    if zero is not None and (zero.dtype != quantized.dtype or zero.size != count):
        return None
    return quantized, scale, zero


def replace_by_constant(graph: ir.Graph, value: ir.Value, name: str, array: np.ndarray) -> ir.Value:
    """Let all who read `value` read the initializer `name` instead."""
    made = constant(graph, name, array)
    value.replace_all_uses_with(made)
    return made


class WidenFloat16Pass(ir.passes.InPlacePass):
    """Turn a float16 model into the float32 one of the same weights; leave any other as it is.

    Inputs and outputs keep their type: a Cast stands behind each input and in front of each output.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for functions, whose values are not widened."""
        require(f"the function {f.name} is not inlined" for f in model.functions.values())

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, graphs = model.graph, list(model.graphs())
        if not any(half_weights(graphs)):
            return ir.passes.PassResult(model, modified=False)
        ends = [value for value in graph.inputs if value.dtype == HALF]
        made = [value for value in graph.outputs if value.dtype == HALF]
        for value in all_values(graphs):
            if value.const_value is not None and value.const_value.dtype == HALF:
                value.const_value = wide(value.const_value)
            if value.dtype == HALF:
                value.type = ir.TensorType(FLOAT)
        for node in graph.all_nodes():
            widen_attributes(node)
        for value in ends:
            value.type = ir.TensorType(HALF)
            cast_input(graph, value)
        for value in made:
            cast_output(graph, value)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a weight that is still float16."""
        ensure(f"{value.name} is float16" for value in half_weights(list(model.graphs())))


def half_weights(graphs: list[ir.Graph]) -> Iterator[ir.Value]:
    """Yield the initializers in float16."""
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == HALF:
                yield value


def all_values(graphs: list[ir.Graph]) -> Iterator[ir.Value]:
    for graph in graphs:
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Return the same numbers in float32, made when they are read."""
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name),
        dtype=FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
            if attribute.as_int() == HALF:
                node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            node.attributes[name] = ir.AttrTensor(name, wide(attribute.as_tensor()))


def cast_input(graph: ir.Graph, value: ir.Value) -> None:
    users = list(value.uses())
    cast = ir.node("Cast", [value], {"to": int(FLOAT)}, name=f"{value.name}.{WIDENED}")
    out = cast.outputs[0]
    out.name, out.type, out.shape = cast.name, ir.TensorType(FLOAT), value.shape
    for user, index in users:
        user.replace_input_with(index, out)
    graph.insert_before(graph[0], cast)


def cast_output(graph: ir.Graph, value: ir.Value) -> None:
    """Cast `value`, now float32, to an output of its old name and type."""
    if value.is_graph_input():
        return
    name = str(value.name)
    value.name = f"{name}.{WIDENED}"
    cast = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{name}.narrowed")
    out = cast.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(HALF), value.shape
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = out
    graph.append(cast)
