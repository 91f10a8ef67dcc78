"""Bring a custom ONNX file into the form of later stages: opset, names, linears, constants.

1. Opset 21 at least; functions are inlined, constants and what they compute are initializers, every
   value has a type; float16 is widened. Bodies of If, Loop and Scan keep their nodes.
2. Every product has the name of its site, by `site_names`; no other node or value has a slash in
   its name, which the stages use for what they insert.
3. Every linear is MatMul with `SITE.weight` [in, out] and an Add of `SITE.bias`, if any.
4. What scales or shifts a channel is one node's own constant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from ...export.passes.linears import CanonicalLinearsPass
from ...graph.passes import Sequential, ensure
from .constants import WIDENED, FoldConstantsPass, WidenFloat16Pass
from .load import OPSET, load
from .names import NameCustomGraphPass, unique
from .products import not_a_linear
from .rewrites import EinsumToMatMulPass, ExplicitPaddingPass, FlatWeightPass, PlainGemmPass
from .sequence_convolutions import SequenceConvolutionsPass

__all__ = ["OPSET", "read_custom_graph"]

UNNAMED = "unnamed"
PER_CHANNEL_OPS = ("Add", "Mul")
NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)


def read_custom_graph(
    path: Path, taken: Collection[str] = (), graph_name: str | None = None
) -> ir.Model:
    """Read a file and bring it into the canonical form; weights stay mapped in their file.

    `taken` are site names of other graphs: a site of such a name gets `graph_name` before it, the
    file's stem by default.
    `model.meta[WIDENED]` says whether the file computes in float16.

    Raises:
        ExportError: not an ONNX model, weights missing, already quantized, or an opset that cannot
            be converted.
    """
    model = load(path)
    for node in model.graph.all_nodes():
        node.meta[UNNAMED] = not node.name  # passes make up names that say nothing
    Sequential(
        NameFixPass(),
        LiftSubgraphInitializersToMainGraphPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    model.meta[WIDENED] = WidenFloat16Pass()(model).modified
    Sequential(
        FoldConstantsPass(),
        LiftSubgraphInitializersToMainGraphPass(),
        TopologicalSortPass(),
        ForgetMadeUpNamesPass(),
        InferShapesPass(),
        *(PlainGemmPass(), EinsumToMatMulPass(), FlatWeightPass(), ExplicitPaddingPass()),
        SequenceConvolutionsPass(),
        InferShapesPass(),
        NameCustomGraphPass(graph_name or path.stem, taken),
        CanonicalLinearsPass(name_of=linear_name),
        SeparateConstantsPass(),
        RemoveUnusedNodesPass(),
    )(model)
    return model


class ForgetMadeUpNamesPass(ir.passes.InPlacePass):
    """Take back the names of nodes that had none in the file, as `node.meta` says."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph.all_nodes():
            if node.meta.get(UNNAMED):
                modified |= node.name is not None
                node.name = None
        return ir.passes.PassResult(model, modified)


class InferShapesPass(ir.passes.InPlacePass):
    """Infer the shapes of all values that have one.

    ONNX infers none for GroupNormalization with a dynamic batch, and none behind it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
        modified = infer(model).modified
        for node in model.graph:
            source = node.inputs[0] if node.op_type == "GroupNormalization" else None
            if source is not None and source.shape is not None and node.outputs[0].shape is None:
                node.outputs[0].shape, node.outputs[0].type = source.shape, source.type
                infer(model)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a GroupNormalization that loses its input's shape."""
        ensure(
            f"{node.outputs[0].name} has no shape"
            for node in model.graph
            if node.op_type == "GroupNormalization"
            and node.inputs[0] is not None
            and node.inputs[0].shape is not None
            and node.outputs[0].shape is None
        )


def linear_name(node: ir.Node) -> str | None:
    """Return the name of a node that is a linear and nothing more, None for other products."""
    return None if node.domain or not_a_linear(node) else node.name


class SeparateConstantsPass(ir.passes.InPlacePass):
    """Copy constants that several nodes scale or shift with, one for each.

    The file of weights holds equal contents once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for value, node, index in shared_constants(graph):
            copy = ir.Value(
                name=unique(f"{value.name}.{node.name}", graph.initializers),
                const_value=value.const_value,
                shape=value.shape,
                type=value.type,
            )
            graph.register_initializer(copy)
            node.replace_input_with(index, copy)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a constant that a node scales with and another reads."""
        ensure(
            f"{node.name} and others read {value.name}"
            for value, node, _ in shared_constants(model.graph)
        )


def shared_constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Node, int]]:
    """Yield (constant, node that scales or shifts with it, its input) but for its first reader."""
    for value in list(graph.initializers.values()):
        for node, index in list(value.uses())[1:]:
            if node.op_type in (*PER_CHANNEL_OPS, *NORMS) and node.graph is graph:
                yield value, node, index
