"""A user's own ONNX file -> the form that later stages take: opset, names, linears, constants.

1. Opset 21 at least; functions are inlined, constants are initializers, every value has a type.
2. Every product has the name of its site, by `site_names`; no other node or value has a slash in
   its name, which the stages use for what they insert.
3. Every linear is MatMul with `SITE.weight` [in, out] and an Add of `SITE.bias`, if any.
4. What scales or shifts a channel is one node's own constant.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.version_converter import convert_version
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from ..errors import ExportError
from ..graph_file import read_graph
from .graph_passes import NAME_SCOPES, SITE_OPS, module_path
from .linear_passes import canonical_linears, drop_unused, weight_of
from .own_products import attention_role, is_activation_product, not_a_linear

OPSET = 21
LARGEST_PROTO = 2**31 - 2**20
# What an exporter calls a constant that it computed: it says nothing of the module.
NAMELESS = re.compile(r"(val|const|constant|onnx::\w+|initializer)[_:]?\d*", re.IGNORECASE)
# What later stages name after a site.
RESERVED = (
    *("weight", "bias", "weight_q", "weight_scale", "weight_zero_point", "weight_f", "weight_log"),
    *("activation_scale", "zero_point", "input_scale", "input_shift", "channel_factor"),
    *("bias_shifted", "clip_low", "clip_high", "pads"),
)
CONVERTER_ERRORS = (
    *(RuntimeError, ValueError, onnx.version_converter.ConvertError),
    onnx.shape_inference.InferenceError,
)
PER_CHANNEL_OPS = ("Add", "Mul")
NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)


def read_own_graph(path: Path, taken: Collection[str] = ()) -> ir.Model:
    """Read a file and bring it into the canonical form; weights stay mapped in their file.

    `taken` are site names of other graphs: a site of such a name gets the file's stem before it.

    Raises:
        ExportError: not an ONNX model, weights missing, or an opset that cannot be converted.
    """
    model = load(path)
    opset = model.opset_imports.get("", 1)
    if opset < OPSET:
        model = raise_opset(model, path, opset)
    for apply in (
        InlinePass(),
        RemoveInitializersFromInputsPass(),
        LiftSubgraphInitializersToMainGraphPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        IdentityEliminationPass(),
        TopologicalSortPass(),
    ):
        apply(model)
    unnamed = [node for node in model.graph if not node.name]
    NameFixPass()(model)
    for node in unnamed:
        node.name = None  # the pass makes up a name that says nothing
    infer_shapes(model)
    name_everything(model.graph, path.stem, taken)
    canonical_linears(model.graph, name_of=linear_name)
    own_constants(model.graph)
    drop_unused(model.graph)
    return model


def load(path: Path) -> ir.Model:
    do = "name an ONNX file that onnx.checker takes"
    return read_graph(path, error=ExportError, do=do, foreign=True)


def weight_files(model: ir.Model) -> list[Path]:
    """The external files that hold a model's weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})


def raise_opset(model: ir.Model, path: Path, opset: int) -> ir.Model:
    """The model at opset 21; the converter forgets what made a node, which is put back.

    Raises:
        ExportError: an operator has no conversion.
    """
    made_by = {
        node.outputs[0].name: node.metadata_props[NAME_SCOPES]
        for node in model.graph
        if NAME_SCOPES in node.metadata_props
    }
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size >= LARGEST_PROTO:
        raise ExportError(
            f"opset {opset} is to be converted to {OPSET}, which takes less than 2 GB of weights",
            where=str(path),
            do=f"export the model at opset {OPSET}",
        )
    ir.external_data.load_to_model(model)
    try:
        converted = convert_version(ir.to_proto(model), OPSET)
    except CONVERTER_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"opset {opset} cannot be converted to {OPSET}: {reason}",
            where=str(path),
            do=f"export the model at opset {OPSET}",
        ) from error
    raised = ir.from_proto(converted)
    for node in raised.graph:
        if node.outputs[0].name in made_by:
            node.metadata_props[NAME_SCOPES] = made_by[node.outputs[0].name]
    return raised


def infer_shapes(model: ir.Model) -> None:
    """Shapes of all values that have one. ONNX infers none for GroupNormalization with a dynamic
    batch, and none behind it.
    """
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "GroupNormalization" else None
        if source is not None and source.shape is not None and node.outputs[0].shape is None:
            node.outputs[0].shape, node.outputs[0].type = source.shape, source.type
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def name_everything(graph: ir.Graph, graph_name: str, taken: Collection[str]) -> None:
    """Products after their sites; other nodes and inner values keep their names without slashes."""
    used: set[str] = set()
    for node in [node for node in graph if node.op_type in SITE_OPS]:
        base = site_name(node)
        if base in taken:
            base = f"{graph_name}.{base}"
        node.name = unique(base, {*used, *taken, *blocked_names(graph, node)})
        used.add(node.name)
    for node in graph:
        if node.op_type not in SITE_OPS:
            node.name = unique(plain(node.name or node.op_type), used)
            used.add(node.name)
    outside = {value.name for value in (*graph.inputs, *graph.outputs)}
    inner = [v for n in graph for v in n.outputs if v.name and v.name not in outside]
    names = {str(v.name) for v in inner} | {str(name) for name in outside}
    for value in inner:
        if "/" in str(value.name):
            value.name = unique(plain(str(value.name)), names)
            names.add(value.name)


def site_name(node: ir.Node) -> str:
    """What a product's weight belongs to, else the module that made the node, else its own name."""
    weight = node.inputs[1]
    if weight is not None and not weight.is_initializer():
        weight = weight_of(node) if node.op_type in ("MatMul", "Gemm") else None
    held = "" if weight is None else str(weight.name)
    base = held.removesuffix(".weight") if held.endswith(".weight") else module_path(node)
    if not base and node.name:
        base = node.name.removesuffix(f"/{node.op_type}")
    if not base and not NAMELESS.fullmatch(held):
        base = held
    base = plain(base or node.op_type.lower())
    return f"{base}.{attention_role(node)}" if is_activation_product(node) else base


def blocked_names(graph: ir.Graph, node: ir.Node) -> set[str]:
    """Names under which other nodes have constants that later stages call a site's."""
    near = [node, *node.outputs[0].consumers()]
    own = {value.name for n in near for value in n.inputs if value is not None}
    weight = weight_of(node) if node.op_type in ("MatMul", "Gemm") else None
    own |= {weight.name} if weight is not None else set()
    return {
        name.rpartition(".")[0]
        for name in graph.initializers
        if name not in own and name.rpartition(".")[2] in RESERVED
    }


def plain(name: str) -> str:
    """Letters, digits, `.`, `_`, `-` and `:` of a name, with dots for slashes."""
    return re.sub(r"[^\w.:-]", "_", name.strip("/").replace("/", "."))


def unique(base: str, used: Collection[str]) -> str:
    name, number = base, 1
    while name in used:
        number += 1
        name = f"{base}_{number}"
    return name


def linear_name(node: ir.Node) -> str | None:
    """The name of a node that is a linear and nothing more, None for any other product."""
    return None if not_a_linear(node) else node.name


def own_constants(graph: ir.Graph) -> None:
    """Copies of constants that several nodes read, one for each that scales or shifts with it.

    The file of weights holds equal contents once.
    """
    for name, value in list(graph.initializers.items()):
        for node, index in list(value.uses())[1:]:
            if node.op_type in (*PER_CHANNEL_OPS, *NORMS) and node.graph is graph:
                copy = ir.Value(
                    name=unique(f"{name}.{node.name}", graph.initializers),
                    const_value=value.const_value,
                    shape=value.shape,
                    type=value.type,
                )
                graph.register_initializer(copy)
                node.replace_input_with(index, copy)
