"""Name and sign the nodes of an exported graph, and check image sizes in it.

The dynamo exporter's node and initializer names change with every edit of a module; the module
path in `pkg.torch.onnx.name_scopes` does not, so everything is named after it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from ...graph.builder import constant, constant_array
from ...graph.passes import ensure, require

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
SITE_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
IMAGE_RANK = 4
CHECKED_MULTIPLE = "size_check.multiple"  # the constant of `InsertSizeCheckPass`


def module_path(node: ir.Node) -> str:
    """Return the path of the module that made `node`: the last scope but the aten call."""
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def is_linear(node: ir.Node) -> bool:
    """Return whether `node` is (a part of) a linear, and no other product with a constant."""
    classes = ast.literal_eval(node.metadata_props.get(CLASSES, "[]"))
    return bool(classes) and classes[-1] == "aten.linear.default"


class NameNodesPass(ir.passes.InPlacePass):
    """Name each node `module.path` for its convolution or linear, else `module.path/Op_k`."""

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for nodes whose scopes are gone, as they are after `SignPass`."""
        nodes = list(model.graph)
        if nodes and not any(NAME_SCOPES in node.metadata_props for node in nodes):
            require(["no node says which module it comes from"])

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        counts: Counter[str] = Counter()
        modified = False
        for node in model.graph:
            path = module_path(node)
            name = path if node.op_type in SITE_OPS and path else f"{path}/{node.op_type}"
            counts[name] += 1
            name = name if counts[name] == 1 and "/" not in name else f"{name}_{counts[name]}"
            modified |= node.name != name
            node.name = name
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a name of two nodes."""
        counts = Counter(node.name for node in model.graph)
        ensure(f"{count} nodes are called {name}" for name, count in counts.items() if count > 1)


class SignPass(ir.passes.InPlacePass):
    """Store what the model is, and drop what differs between machines and processes.

    Exporters leave paths of the machine, and sets whose order is another in each process.
    """

    def __init__(self, properties: Mapping[str, str]) -> None:
        super().__init__()
        self.properties = dict(properties)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = (dict(model.metadata_props), model.producer_name, model.producer_version)
        cleared = any(node.doc_string for node in model.graph.all_nodes())  # it does not count them
        cleared |= ClearMetadataAndDocStringPass()(model).modified
        model.metadata_props.clear()
        model.metadata_props.update(self.properties)
        model.producer_name, model.producer_version = "arvg-trt", ""
        signed = (self.properties, model.producer_name, model.producer_version)
        return ir.passes.PassResult(model, cleared or before != signed)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node that still says where it comes from."""
        nodes = model.graph.all_nodes()
        ensure(f"{n.name} has metadata" for n in nodes if n.metadata_props or n.doc_string)


class InsertSizeCheckPass(ir.passes.InPlacePass):
    """Make the graph refuse images whose H or W is not a multiple of the stride.

    Strided convolutions would drop the odd rows silently. A Reshape to
    [N, 3, H // m * m, W // m * m] has as many elements as its input only for multiples; a side
    of 0, which stands for the input's own, is a side of m instead. A graph with the check is left.
    """

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a graph without an image, or with the check of another m."""
        require(self._problems(model.graph))

    def _problems(self, graph: ir.Graph) -> Iterator[str]:
        shape = graph.inputs[0].shape if graph.inputs else None
        if shape is None or len(shape) != IMAGE_RANK:
            yield "the first input is no image [N, C, H, W]"
        units = graph.initializers.get(CHECKED_MULTIPLE)
        if units is not None and constant_array(units).tolist() != [self.multiple]:
            yield "the graph checks another multiple"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        if CHECKED_MULTIPLE in graph.initializers:
            return ir.passes.PassResult(model, modified=False)
        image = graph.inputs[0]
        units = constant(graph, CHECKED_MULTIPLE, np.array([self.multiple], np.int64))
        lead = ir.node("Shape", [image], {"start": 0, "end": 2}, name="size_check/Shape_1")
        size = ir.node("Shape", [image], {"start": 2, "end": 4}, name="size_check/Shape_2")
        whole = ir.node("Div", [size.outputs[0], units], name="size_check/Div")
        back = ir.node("Mul", [whole.outputs[0], units], name="size_check/Mul")
        side = ir.node("Max", [back.outputs[0], units], name="size_check/Max")
        target = ir.node(
            "Concat", [lead.outputs[0], side.outputs[0]], {"axis": 0}, name="size_check/Concat"
        )
        reshape = ir.node("Reshape", [image, target.outputs[0]], name="size_check/Reshape")
        reshape.outputs[0].shape = image.shape
        reshape.outputs[0].dtype = ir.DataType.FLOAT
        for k, node in enumerate((lead, size, whole, back, side, target, reshape)):
            node.outputs[0].name = f"size_check.{k}"
        for consumer, index in list(image.uses()):
            if consumer.op_type != "Shape" and consumer is not reshape:
                consumer.replace_input_with(index, reshape.outputs[0])
        graph.insert_before(graph[0], (lead, size, whole, back, side, target, reshape))
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node that reads the image past the check."""
        users = (node for node, _ in model.graph.inputs[0].uses())
        ensure(
            f"{node.name} reads the image unchecked"
            for node in users
            if node.op_type != "Shape" and node.name != "size_check/Reshape"
        )
