"""Name the nodes of an exported graph, check image sizes in it, and find its sites.

The dynamo exporter's node and initializer names change with every edit of a module; the module
path in `pkg.torch.onnx.name_scopes` does not, so everything is named after it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from ...graph.builder import constant
from ...graph.sites import Site

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
SITE_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
ATTENTION = "attention stays one fused high-precision kernel"


def module_path(node: ir.Node) -> str:
    """Return the path of the module that made `node`: the last scope but the aten call."""
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def is_linear(node: ir.Node) -> bool:
    """Return whether `node` is (a part of) a linear, and no other product with a constant."""
    classes = ast.literal_eval(node.metadata_props.get(CLASSES, "[]"))
    return bool(classes) and classes[-1] == "aten.linear.default"


def rename_nodes(graph: ir.Graph) -> None:
    """Name each node `module.path` for its convolution or linear, else `module.path/Op_k`."""
    counts: Counter[str] = Counter()
    for node in graph:
        path = module_path(node)
        name = path if node.op_type in SITE_OPS and path else f"{path}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 and "/" not in name else f"{name}_{counts[name]}"


def sign(model: ir.Model, properties: Mapping[str, str]) -> None:
    """Store what the model is, and drop what differs between machines and processes.

    Exporters leave paths of the machine, and sets whose order is another in each process.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.update(properties)
    model.producer_name, model.producer_version = "arvg-trt", ""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None


def insert_size_check(graph: ir.Graph, multiple: int) -> None:
    """Make the graph refuse images whose H or W is not a multiple of the stride.

    Strided convolutions would drop the odd rows silently. A Reshape to
    [N, 3, H // m * m, W // m * m] has as many elements as its input only for multiples; a side
    of 0, which stands for the input's own, is a side of m instead.
    """
    image = graph.inputs[0]
    units = constant(graph, "size_check.multiple", np.array([multiple], np.int64))
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


def find_sites(
    graph: ir.Graph, graph_name: str, high_precision: Mapping[str, str]
) -> tuple[Site, ...]:
    """Return sites in graph order; `high_precision` maps a module path to why it is left out.

    Raises:
        ExportError: a path of `high_precision` that no node has (a renamed module).
    """
    sites: list[Site] = []
    for node in graph:
        if node.op_type not in SITE_OPS:
            continue
        weight = node.inputs[1]
        assert node.name and weight is not None and node.inputs[0] is not None
        if weight.const_value is None:
            sites.append(activation_product(node, graph_name))
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        path = module_path(node)
        source = node.inputs[0].producer()
        fold = None
        if source is not None and source.op_type == "GroupNormalization":
            scale, shift = source.inputs[1], source.inputs[2]
            assert scale is not None and shift is not None and scale.name and shift.name
            fold = (scale.name, shift.name)
        sites.append(
            Site(
                name=path,
                graph=graph_name,
                role=_conv_role(path, tuple(weight.const_value.shape.numpy())),
                op=node.op_type,
                node=node.name,
                weight=weight.name,
                bias=None if bias is None else bias.name,
                input=str(node.inputs[0].name),
                output=str(node.outputs[0].name),
                weight_shape=tuple(weight.const_value.shape.numpy()),
                channel_axis=1 if node.op_type.startswith("Conv") else last_axis(node.inputs[0]),
                shares_input_with=tuple(
                    module_path(user)
                    for user in node.inputs[0].consumers()
                    if user is not node and user.op_type in SITE_OPS
                ),
                fold=fold,
                excluded=high_precision.get(path),
            )
        )
    require_named(high_precision, sites, graph_name)
    return tuple(sites)


def last_axis(value: ir.Value) -> int:
    return 1 if value.shape is None else value.shape.rank() - 1


def require_named(excluded: Collection[str], sites: Sequence[Site], graph_name: str) -> None:
    """Raise ExportError for a module in `excluded` that the graph lacks (renamed)."""
    unknown = sorted(set(excluded) - {site.name for site in sites})
    if unknown:
        raise ExportError(
            f"no site named {', '.join(unknown)} in the {graph_name} graph",
            do="the model's list of high-precision sites is out of date",
        )


def activation_product(node: ir.Node, graph_name: str) -> Site:
    """Return the site of an attention's product: the scores, or softmax times values."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None and node.name
    producer = left.producer()
    role = "bmm_pv" if producer is not None and producer.op_type == "Softmax" else "bmm_qk"
    return Site(
        name=f"{module_path(node)}.{role}",
        graph=graph_name,
        role=role,
        op=node.op_type,
        node=node.name,
        weight=None,
        bias=None,
        input=str(left.name),
        output=str(node.outputs[0].name),
        weight_shape=(),
        channel_axis=3,
        excluded=ATTENTION,
    )


def _conv_role(path: str, weight_shape: tuple[int, ...]) -> str:
    last = path.rsplit(".", 1)[-1]
    if last in ("q", "k", "v"):
        return last
    if last in ("proj_out", "nin_shortcut"):
        return {"proj_out": "proj", "nin_shortcut": "shortcut"}[last]
    if last in ("patcher", "unpatcher"):
        return "patcher"
    if "nearest" in path.split("."):
        return "codes"
    return "conv" if len(weight_shape) == 4 else "linear"
