"""Read a custom ONNX file: weights stay mapped, and the opset is raised without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.version_converter import convert_version
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from ...errors import ExportError
from ...export.passes.naming import NAME_SCOPES
from ...graph.io import read_graph
from ...graph.passes import Sequential, ensure
from .quantized import refuse_quantized

OPSET = 21
IR_VERSION = 10  # the IR version of opset 21
ALIAS = "ai.onnx"  # the other name of the default domain
# Largest constant, in bytes, that the converter gets: it reads axes, shapes and scales, no weight.
SMALL = 4096
CONVERTER_ERRORS = (
    *(RuntimeError, ValueError, onnx.version_converter.ConvertError),
    onnx.shape_inference.InferenceError,
)


def load(path: Path) -> ir.Model:
    """Return the model of a file, at opset 21 or later and without functions.

    Raises:
        ExportError: not an ONNX model, weights missing, already quantized, or an opset that cannot
            be converted.
    """
    model = read(path)
    Sequential(
        DefaultDomainPass(),
        InlinePass(),
        RemoveInitializersFromInputsPass(),
        OpenDimensionsPass(),
    )(model)
    refuse_quantized(model, path)
    opset = model.opset_imports.get("", 1)
    return raise_opset(model, path, opset) if opset < OPSET else model


def read(path: Path) -> ir.Model:
    """Read the model of a file unchanged; raise ExportError if it is none, or lacks its weights."""
    do = "name an ONNX file that onnx.checker takes"
    return read_graph(path, error=ExportError, do=do, foreign=True)


def weight_files(model: ir.Model) -> list[Path]:
    """Return the external files that hold a model's weights, those of bodies too."""
    tensors = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    return sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the graph, of bodies and of functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


class DefaultDomainPass(ir.passes.InPlacePass):
    """Write `ai.onnx` as the empty domain that it stands for."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in all_nodes(model):
            if node.domain == ALIAS:
                node.domain, modified = "", True
        for imports in all_imports(model):
            if ALIAS in imports:
                imports.setdefault("", imports[ALIAS])
                del imports[ALIAS]
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node or a list of opsets that says `ai.onnx`."""
        ensure(f"{node.op_type} is of {ALIAS}" for node in all_nodes(model) if node.domain == ALIAS)
        ensure(f"{ALIAS} is imported" for imports in all_imports(model) if ALIAS in imports)


def all_imports(model: ir.Model) -> list[dict[str, int]]:
    """Return the opsets of the model and of its functions."""
    return [model.opset_imports, *(f.opset_imports for f in model.functions.values())]


class OpenDimensionsPass(ir.passes.InPlacePass):
    """Make sizes of 0 and below in declared inputs and outputs dynamic, as other tools do.

    What the file says of values in between is then inferred again. Names without a letter, such as
    "?", are dropped too: TensorRT takes dimensions of one name for equal.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        odd = modified = False
        for value, shape in declared_shapes(graph):
            odd = odd or any(isinstance(d, int) and d <= 0 for d in shape)
            value.shape = opened(shape)
            modified = modified or value.shape != shape
        if odd:
            ends = {*graph.inputs, *graph.outputs}
            for node in graph:
                for value in node.outputs:
                    if value not in ends:
                        value.shape = None
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for an input or output with such a size or name."""
        shapes = declared_shapes(model.graph)
        ensure(f"{v.name} is of {shape}" for v, shape in shapes if shape != opened(shape))


def declared_shapes(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Shape]]:
    """Yield the inputs and outputs that have a shape, with it."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            yield value, value.shape


def opened(shape: ir.Shape) -> ir.Shape:
    """Return the shape with open dimensions as dynamic ones without a name."""
    return ir.Shape([None if is_open(dimension) else dimension for dimension in shape])


def is_open(dimension: int | ir.SymbolicDim) -> bool:
    if isinstance(dimension, int):
        return dimension <= 0
    return not any(letter.isalpha() for letter in str(dimension.value or ""))


def raise_opset(model: ir.Model, path: Path, opset: int) -> ir.Model:
    """Return the model at opset 21.

    The converter gets inputs for weights, so that none is copied and their size does not matter.
    It forgets what made a node, which is put back.

    Raises:
        ExportError: an operator has no conversion.
    """
    made_by = {
        node.outputs[0].name: node.metadata_props[NAME_SCOPES]
        for node in model.graph
        if node.outputs and NAME_SCOPES in node.metadata_props
    }
    graph = model.graph
    weights = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes > SMALL
        and not value.is_graph_output()
    }
    model.ir_version = max(model.ir_version, IR_VERSION)  # before 4, constants had to be inputs
    for name, value in weights.items():
        graph.initializers.pop(name)
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
        graph.inputs.append(value)
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
    for _ in weights:
        value = raised.graph.inputs.pop()
        held = weights[str(value.name)]
        value.const_value, held.const_value = held.const_value, None  # the old graph has cycles
        raised.graph.register_initializer(value)
    for node in raised.graph:
        if node.outputs and node.outputs[0].name in made_by:
            node.metadata_props[NAME_SCOPES] = made_by[node.outputs[0].name]
    return raised
