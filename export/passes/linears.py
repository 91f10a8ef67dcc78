"""Write the linears of an exported graph in one way, and name them.

The exporter writes a linear as Gemm or MatMul, with a transposed weight that it computes, or, if
that is large, leaves to the graph. Here all become MatMul(x, W [in, out]) and Add of the bias,
with initializers named after the module. Transposed weights are made one at a time, when written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from ...graph.builder import Inserter
from ...graph.linears import gemm_to_matmul, gemm_transposes, is_plain_gemm
from ...graph.passes import ensure, remove_unused, require
from .naming import is_linear, module_path


class TransposedTensor(ir.LazyTensor):
    """Hold the transpose of `source` [rows, columns], made when it is read."""

    def __init__(self, source: ir.TensorProtocol, name: str) -> None:
        rows, columns = source.shape.numpy()
        shape = ir.Shape([columns, rows])
        super().__init__(self._transpose, dtype=source.dtype, shape=shape, name=name)
        self.source = source

    def _transpose(self) -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(self.source.numpy().T), name=self.name)


def linear_path(node: ir.Node) -> str | None:
    """Return the module of a linear that the dynamo exporter wrote, None for another product."""
    return module_path(node) if is_linear(node) else None


class CanonicalLinearsPass(ir.passes.InPlacePass):
    """Write every linear as a MatMul with an Add, with initializers of its module's name.

    1. Every linear is MatMul `path` of `path.weight` [in, out]. 2. Its bias, if any, is `path.bias`
    [out], in the Add `path/Add` behind it. 3. Other products with a constant stay as they are.

    Modules have initializers of their own, also where the exporter merged equal ones. One that a
    graph calls twice keeps one weight, and its second node has a number. `name_of` says what module
    a product is the linear of.

    Raises:
        ExportError: a Gemm with factors, or two constants of one name.
    """

    def __init__(self, name_of: Callable[[ir.Node], str | None] = linear_path) -> None:
        super().__init__()
        self.name_of = name_of

    def _linears(self, graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
        for node in list(graph):
            path = self.name_of(node) if node.op_type in ("Gemm", "MatMul") else None
            if path is not None:
                yield node, path

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where `name_of` names a product without a constant."""
        require(
            f"{path} is named as a linear, and its weight is no constant"
            for node, path in self._linears(model.graph)
            if weight_of(node) is None
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for linear, path in self._linears(graph):
            node = lower_gemm(graph, linear) if linear.op_type == "Gemm" else linear
            modified |= node is not linear
            modified |= name_weight(graph, node, path)
            add = bias_add(node)
            if add is not None:
                modified |= name_bias(graph, node, add, path)
        modified |= remove_unused(graph)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a linear that is not in the form above."""
        ensure(
            f"{node.name} is no MatMul of {path}.weight"
            for node, path in self._linears(model.graph)
            if node.op_type != "MatMul"
            or node.inputs[1] is not model.graph.initializers.get(f"{path}.weight")
        )


def name_weight(graph: ir.Graph, node: ir.Node, path: str) -> bool:
    """Let a MatMul read `path.weight` [in, out]; return whether it did not before."""
    weight, read = weight_of(node), node.inputs[1]
    assert weight is not None and read is not None
    transpose = read.producer()
    if transpose is None:
        named = named_initializer(graph, weight, f"{path}.weight")
        node.replace_input_with(1, named)
        return named is not read
    node.replace_input_with(1, transposed(graph, weight, f"{path}.weight"))
    if not transpose.outputs[0].uses():
        graph.remove(transpose, safe=True)
    return True


def name_bias(graph: ir.Graph, node: ir.Node, add: ir.Node, path: str) -> bool:
    """Let the Add behind a MatMul be called after it and read `path.bias`; return if it did not."""
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    bias, name = add.inputs[index], f"{node.name}/Add"
    assert bias is not None
    named = named_initializer(graph, bias, f"{path}.bias")
    modified = named is not bias or add.name != name
    add.replace_input_with(index, named)
    add.name = name
    return modified


def lower_gemm(graph: ir.Graph, gemm: ir.Node) -> ir.Node:
    """Replace a Gemm by MatMul and Add; a transposed weight is left to a Transpose.

    Raises:
        ExportError: the Gemm has factors, which the exporter never writes.
    """
    weight = gemm.inputs[1]
    assert weight is not None
    if not is_plain_gemm(gemm):
        raise ExportError(
            f"Gemm {gemm.name} is not a linear", do="report it with the checkpoint's name"
        )
    output = str(gemm.outputs[0].name)
    transposes = gemm_transposes(gemm)
    if transposes:
        weight = Inserter(graph, gemm)("Transpose", weight, perm=[1, 0])
        weight.name, weight.type = f"{output}/0", gemm.outputs[0].type
    return gemm_to_matmul(
        graph, gemm, weight, output=f"{output}/{int(transposes)}", added=f"{gemm.name}/Add"
    )


def weight_of(node: ir.Node) -> ir.Value | None:
    """Return the constant that a product multiplies with, directly or through a Transpose."""
    right = node.inputs[1]
    assert right is not None
    if right.is_initializer():
        return right
    source = right.producer()
    if source is None or source.op_type != "Transpose":
        return None
    value = source.inputs[0]
    return value if value is not None and value.is_initializer() else None


def transposed(graph: ir.Graph, weight: ir.Value, name: str) -> ir.Value:
    """Return the initializer `name` with the transpose of `weight`, shared by the graph's nodes."""
    if name in graph.initializers and graph.initializers[name] is not weight:
        return graph.initializers[name]
    tensor = weight.const_value
    assert tensor is not None and tensor.dtype == ir.DataType.FLOAT
    if name in graph.initializers:
        weight.name = f"{name}.official"
    lazy = TransposedTensor(tensor, name)
    value = ir.Value(name=name, const_value=lazy, shape=lazy.shape, type=ir.TensorType(lazy.dtype))
    graph.register_initializer(value)
    return value


def named_initializer(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Return the initializer `name` with the content of `value`.

    The exporter merges initializers of equal content, such as the zero biases of an untrained
    model; a pass that changes one module's must not change another's.

    Raises:
        ExportError: another constant has the name.
    """
    if value.name == name:
        return value
    if name in graph.initializers:
        found = graph.initializers[name].const_value
        assert found is not None and value.const_value is not None
        if not np.array_equal(found.numpy(), value.const_value.numpy()):
            raise ExportError(f"two different constants are called {name}", do="report it")
    else:
        assert value.const_value is not None
        copy = ir.Value(
            name=name, const_value=value.const_value, shape=value.shape, type=value.type
        )
        graph.register_initializer(copy)
    return graph.initializers[name]


# What is renamed: (node, input, initializer, the name that it shall have).
Parameter = tuple[ir.Node, int, ir.Value, str]


class NameParametersPass(ir.passes.InPlacePass):
    """Give the parameters that `found` lists in a graph initializers of their own names.

    The exporter merges equal ones.
    """

    def __init__(self, found: Callable[[ir.Graph], Iterator[Parameter]]) -> None:
        super().__init__()
        self.found = found

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for node, index, value, name in self.found(graph):
            named = named_initializer(graph, value, name)
            modified |= named is not value
            node.replace_input_with(index, named)
        modified |= remove_unused(graph)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a parameter of another name."""
        ensure(
            f"{value.name} is not called {name}"
            for _, _, value, name in self.found(model.graph)
            if value.name != name
        )


def norm_parameters(graph: ir.Graph) -> Iterator[Parameter]:
    """Yield the weights and biases of layer norms, to be called `path.weight` and `path.bias`."""
    for node in graph:
        if node.op_type != "LayerNormalization":
            continue
        for index, kind in ((1, "weight"), (2, "bias")):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.is_initializer():
                yield node, index, value, f"{module_path(node)}.{kind}"


def bias_add(node: ir.Node) -> ir.Node | None:
    """Return the Add of a constant vector as long as the product's last axis, if its only use."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    weight = node.inputs[1]
    for value in users[0].inputs:
        if value is not None and value.is_initializer() and value.shape is not None:
            sizes = value.shape.numpy()
            if weight is not None and len(sizes) == 1 and weight.shape is not None:
                return users[0] if weight.shape[1] == sizes[0] else None
    return None
