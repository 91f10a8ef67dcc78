"""Rewrite products of a custom graph that are a plain convolution or linear in disguise.

Gemm with alpha, beta or transA, Einsum of a linear, a weight with leading axes of 1, padding that
the size of the input decides: each is written as what later stages quantize. What cannot be is
left, and listed with the reason. Shapes must be known where they are static.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import constant
from ...graph.passes import ensure

FLOAT = ir.DataType.FLOAT


class RewritePass(ir.passes.InPlacePass):
    """Rewrite each node of certain operators of ONNX that is a plain product in disguise."""

    operators: ClassVar[tuple[str, ...]]

    @abstractmethod
    def can_rewrite(self, node: ir.Node) -> bool:
        """Return whether the node has a plain form that it is not in."""

    @abstractmethod
    def rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        """Write the node in its plain form."""

    def _found(self, graph: ir.Graph) -> Iterator[ir.Node]:
        for node in list(graph):
            if node.domain == "" and node.op_type in self.operators and self.can_rewrite(node):
                yield node

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in self._found(model.graph):
            self.rewrite(model.graph, node)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node that still has a plain form that it is not in."""
        ensure(f"{n.op_type} {n.outputs[0].name} is not plain" for n in self._found(model.graph))


class PlainGemmPass(RewritePass):
    """Write alpha A^T W + beta C with a Transpose in front, and the factors in W and C."""

    operators = ("Gemm",)

    def can_rewrite(self, node: ir.Node) -> bool:
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or not is_float_constant(weight) or is_float_constant(x):
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if bias is not None and beta != 1.0 and not is_float_constant(bias):
            return False
        written = {"alpha", "beta"} & set(node.attributes)
        return bool(written) or node.attributes.get_int("transA", 0) != 0

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        alpha, beta = (node.attributes.get_float(k, 1.0) for k in ("alpha", "beta"))
        x, weight = node.inputs[0], node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None and weight is not None
        if bias is not None and beta != 1.0:
            wide = array_of(bias).astype(np.float64) * beta
            change_constant(graph, node, 2, wide.astype(np.float32))
        node.attributes.pop("beta", None)
        if alpha != 1.0:
            wide = array_of(weight).astype(np.float64) * alpha
            change_constant(graph, node, 1, wide.astype(np.float32))
        node.attributes.pop("alpha", None)
        if node.attributes.get_int("transA", 0):
            turned = insert_before(graph, node, "Transpose", [x], perm=[1, 0])
            if x.shape is not None:
                turned.shape = ir.Shape(list(reversed(list(x.shape))))
            node.replace_input_with(0, turned)
            node.attributes.pop("transA")


class EinsumToMatMulPass(RewritePass):
    """Write an Einsum of an activation's last axis with a constant matrix as a MatMul."""

    operators = ("Einsum",)

    def can_rewrite(self, node: ir.Node) -> bool:
        return einsum_operands(node) is not None

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        found = einsum_operands(node)
        assert found is not None
        first, second, transposes = found
        if transposes:
            held = node.inputs[second]
            assert held is not None
            change_constant(graph, node, second, array_of(held).T)
        x, weight = node.inputs[first], node.inputs[second]
        product = ir.node("MatMul", [x, weight], name=node.name)
        product.metadata_props.update(node.metadata_props)
        product.meta.update(node.meta)
        replace_node(graph, node, product)


class FlatWeightPass(RewritePass):
    """Reshape a weight [1, .., 1, K, N] to the matrix [K, N], if the input has as many axes."""

    operators = ("MatMul",)

    def can_rewrite(self, node: ir.Node) -> bool:
        x, weight = node.inputs[0], node.inputs[1]
        if not is_float_constant(weight) or x is None or x.shape is None:
            return False
        assert weight is not None and weight.const_value is not None
        sizes = weight.const_value.shape.numpy()
        return len(sizes) > 2 and set(sizes[:-2]) == {1} and len(x.shape) >= len(sizes)

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        weight = node.inputs[1]
        assert weight is not None
        array = array_of(weight)
        change_constant(graph, node, 1, array.reshape(array.shape[-2:]))


class ExplicitPaddingPass(RewritePass):
    """Replace `auto_pad` by numbers, where the size of the input is known or irrelevant.

    With a stride of 1 the padding is the kernel's extent less one, whatever the size.
    """

    operators = ("Conv",)

    def can_rewrite(self, node: ir.Node) -> bool:
        return padding(node) is not None

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        pads = padding(node)
        assert pads is not None
        node.attributes.pop("auto_pad")
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def is_float_constant(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.const_value.dtype == FLOAT
    )


def array_of(value: ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    found: NDArray[np.float32] = value.const_value.numpy()
    return found


def free_name(graph: ir.Graph, name: str) -> str:
    """Return `name`, or the same with a number in front of `.weight` or `.bias`."""
    stem, dot, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        stem, dot, last = name, "", ""
    candidate, number = name, 1
    while candidate in graph.initializers:
        number += 1
        candidate = f"{stem}_{number}{dot}{last}"
    return candidate


def change_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Give a node another constant; one that only it reads keeps its name."""
    value = node.inputs[index]
    assert value is not None
    name = str(value.name)
    if len(list(value.uses())) == 1 and not value.is_graph_output():
        graph.initializers.pop(name)
    else:
        name = free_name(graph, name)
    node.replace_input_with(index, constant(graph, name, np.ascontiguousarray(array)))


def einsum_operands(node: ir.Node) -> tuple[int, int, bool] | None:
    """Return (input of x, of its matrix, if that is [N, K]) of an Einsum that is a linear."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or len(node.inputs) != 2:
        return None
    first, second = (0, 1) if is_float_constant(node.inputs[1]) else (1, 0)
    x, weight = node.inputs[first], node.inputs[second]
    x_axes, w_axes = terms[first], terms[second]
    if x is None or is_float_constant(x) or not is_float_constant(weight):
        return None
    plain = x_axes.removeprefix("...")
    lead = "..." if x_axes.startswith("...") else ""
    if len(w_axes) != 2 or len(plain) < 1 or len(set(plain + w_axes)) != len(plain) + 1:
        return None
    k = plain[-1]
    if k not in w_axes or "." in plain + w_axes:
        return None
    n = w_axes.replace(k, "")
    if n in plain or out != lead + plain[:-1] + n:
        return None
    return first, second, w_axes[0] != k


def padding(node: ir.Node) -> list[int] | None:
    """Return the numbers that `auto_pad` of a Conv stands for; None without it or if unknown."""
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    weight = node.inputs[1]
    if kind == "NOTSET" or weight is None or weight.shape is None:
        return None
    kernel = [k for k in weight.shape[2:] if isinstance(k, int)]
    if len(kernel) != len(weight.shape) - 2:
        return None
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    pads = [0] * (2 * rank)
    if kind != "VALID":
        x = node.inputs[0]
        sizes = [None] * rank if x is None or x.shape is None else list(x.shape[2:])
        for axis, (k, stride, dilation, size) in enumerate(
            zip(kernel, strides, dilations, sizes, strict=True)
        ):
            extent = (k - 1) * dilation + 1
            if stride == 1:
                total = extent - 1
            elif isinstance(size, int):
                total = (-(-size // stride) - 1) * stride + extent - size
                # A kernel below the stride: ONNX Runtime crops, ONNX's reference does not.
                if total < 0:
                    return None
            else:
                return None
            first = total // 2 if kind == "SAME_UPPER" else total - total // 2
            pads[axis], pads[axis + rank] = first, total - first
    return pads


def insert_before(
    graph: ir.Graph, node: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: Sequence[int]
) -> ir.Value:
    """Insert a node in front of another; its output has the type of its input."""
    made = ir.node(op, inputs, attributes, name=f"{node.outputs[0].name}.{op}")
    out = made.outputs[0]
    out.name, out.type = f"{node.outputs[0].name}.{op}", inputs[0].type
    graph.insert_before(node, made)
    return out


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Replace a node of one output by another."""
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    graph.insert_before(old, new)
    name, before.name = before.name, None
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    after.name = name
    graph.remove(old, safe=True)
