"""Write the linears of an exported graph in one way, name them, and list them as sites.

The exporter writes a linear as Gemm or MatMul, with a transposed weight that it computes, or, if
that is large, leaves to the graph. Here all become MatMul(x, W [in, out]) and Add of the bias,
with initializers named after the module. Transposed weights are made one at a time, when written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from ...graph.builder import Inserter
from ...graph.edit import drop_unused_initializers
from ...graph.linears import gemm_to_matmul, gemm_transposes, is_plain_gemm
from ...graph.sites import FoldPart, ProducerFold, Site
from .naming import activation_product, is_linear, last_axis, module_path, require_named


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


def canonical_linears(
    graph: ir.Graph, name_of: Callable[[ir.Node], str | None] = linear_path
) -> None:
    """Write every linear as a MatMul with an Add, with initializers of its module's name.

    1. Every linear is MatMul `path` of `path.weight` [in, out]. 2. Its bias, if any, is `path.bias`
    [out], in the Add `path/Add` behind it. 3. Other products with a constant stay as they are.

    Modules have initializers of their own, also where the exporter merged equal ones. One that a
    graph calls twice keeps one weight, and its second node has a number. `name_of` says what module
    a product is the linear of.
    """
    for node in list(graph):
        path = name_of(node) if node.op_type in ("Gemm", "MatMul") else None
        if path is None:
            continue
        if node.op_type == "Gemm":
            node = lower_gemm(graph, node)
        weight = weight_of(node)
        assert weight is not None and node.inputs[1] is not None
        transpose = node.inputs[1].producer()
        if transpose is None:
            node.replace_input_with(1, named_initializer(graph, weight, f"{path}.weight"))
        else:
            node.replace_input_with(1, transposed(graph, weight, f"{path}.weight"))
            if not transpose.outputs[0].uses():
                graph.remove(transpose, safe=True)
        add = bias_add(node)
        if add is not None:
            index = 1 if add.inputs[0] is node.outputs[0] else 0
            bias = add.inputs[index]
            assert bias is not None
            add.replace_input_with(index, named_initializer(graph, bias, f"{path}.bias"))
            add.name = f"{node.name}/Add"
    drop_unused_initializers(graph)


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


def name_norm_parameters(graph: ir.Graph) -> None:
    """Give every layer norm with an affine the initializers `path.weight` and `path.bias`."""
    for node in graph:
        if node.op_type == "LayerNormalization":
            for index, name in ((1, "weight"), (2, "bias")):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is not None and value.is_initializer():
                    node.replace_input_with(
                        index, named_initializer(graph, value, f"{module_path(node)}.{name}")
                    )
    drop_unused_initializers(graph)


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


def linear_sites(
    graph: ir.Graph,
    graph_name: str,
    *,
    role: Callable[[str], str],
    fold: Callable[[str], ProducerFold | None],
    excluded: Mapping[str, str],
    token_axis: Mapping[str, int],
    position_input: str | None,
    of_all_positions: bool = False,
) -> tuple[Site, ...]:
    """Return the sites of a transformer's graph after `canonical_linears`, in graph order.

    `role` and `fold` answer for a module's path, `token_axis` for a role; `excluded` says by
    module path why a site is left out.

    Raises:
        ExportError: a path of `excluded` that the graph has not (a renamed module).
    """
    sites: list[Site] = []
    for node in graph:
        if node.op_type != "MatMul":
            continue
        if not is_linear(node):
            if weight_of(node) is None:
                sites.append(activation_product(node, graph_name))
            continue
        x, weight = node.inputs
        add = bias_add(node)
        path = module_path(node)
        assert x is not None and weight is not None and weight.shape is not None and node.name
        kind = role(path)
        axis = token_axis.get(kind)
        sites.append(
            Site(
                name=path,
                graph=graph_name,
                role=kind,
                op="MatMul",
                node=node.name,
                weight=weight.name,
                bias=f"{path}.bias" if add is not None else None,
                input=str(x.name),
                output=str((add or node).outputs[0].name),
                weight_shape=tuple(weight.shape.numpy()),
                channel_axis=last_axis(x),
                shares_input_with=tuple(
                    module_path(user)
                    for user in x.consumers()
                    if user is not node and user.op_type == "MatMul"
                ),
                token_axis=axis,
                position_input=None if axis is None else position_input,
                of_all_positions=of_all_positions,
                producer_fold=fold(path),
                excluded=excluded.get(path),
            )
        )
    require_named(excluded, sites, graph_name)
    return tuple(sites)


def columns(linear: str, starts: Sequence[int], shift: int) -> ProducerFold:
    """Return the fold that divides output features of a linear; the bias at `shift` is shifted."""
    divide = [
        part
        for start in starts
        for part in (
            FoldPart(initializer=f"{linear}.weight", axis=1, start=start),
            FoldPart(initializer=f"{linear}.bias", axis=0, start=start),
        )
    ]
    shifted = FoldPart(initializer=f"{linear}.bias", axis=0, start=shift)
    return ProducerFold(divide=tuple(divide), subtract=(shifted,))
