"""Convert a canonical FP32 Q/DQ graph to FP16 or BF16, as TensorRT builds it, in valid ONNX.

Under strong typing precision is a property of the graph, so the copy has Casts where it changes.
Conv, MatMul and what lies between them run in half precision; `precision_rules` says what stays in
FP32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from ...errors import BuildError
from ...graph.passes import Sequential, ensure, remove_unused, require, structure
from .precision_rules import TYPE_BLIND, holds_beyond, is_float, only_masks, single_precision

HalfType = Literal["float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class _HalfFormat:
    name: HalfType
    type: ir.DataType
    largest: float
    smallest_normal: float
    opsets: range
    lacking: frozenset[str]  # operators that TensorRT for RTX does not build in this type


# Half scales exist from opset 19, and DequantizeLinear types its output otherwise from 23.
HALF_OPSETS = range(19, 23)
_HALF_FORMATS: dict[HalfType, _HalfFormat] = {
    "float16": _HalfFormat(
        "float16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, HALF_OPSETS, frozenset()
    ),
    "bfloat16": _HalfFormat(
        "bfloat16",
        ir.DataType.BFLOAT16,
        255 * 2.0**120,
        2.0**-126,
        range(21, 23),
        frozenset({"ConvTranspose"}),
    ),
}
# Conv takes bfloat16 from 22, which is 21 with that added; GroupNormalization is as now from 21.
_BFLOAT16_OPSET = 22


def to_half_precision(
    model: onnx.ModelProto | ir.Model,
    *,
    keep_fp32: Collection[str] = (),
    dtype: HalfType = "float16",
) -> onnx.ModelProto:
    """Return a copy of `model` that computes in `dtype`, with Casts around FP32 parts.

    Inputs, outputs and node names stay as they are; weights must be inside the model. `keep_fp32`
    names further nodes that stay in FP32; nodes with a constant beyond the range of `dtype` do so
    by themselves. A bfloat16 copy has opset 22.

    Raises:
        BuildError: an opset other than 19 to 22 (bfloat16: 21, 22), control flow, values of unknown
            type, a name in `keep_fp32` that is no node, a scale that is not positive.
    """
    converted = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model.clone()
    ir.external_data.load_to_model(converted)
    Sequential(
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        HalfPrecisionPass(keep_fp32, dtype),
    )(converted)
    return ir.to_proto(converted)


class HalfPrecisionPass(ir.passes.InPlacePass):
    """Let a model compute in half precision, as `to_half_precision` describes it.

    Raises:
        BuildError: as `to_half_precision`.
    """

    def __init__(self, keep_fp32: Collection[str] = (), dtype: HalfType = "float16") -> None:
        super().__init__()
        self.keep_fp32 = tuple(keep_fp32)
        self.dtype = dtype

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a Constant or function, whose numbers would not be seen."""
        require(f"{n.name} is a Constant" for n in model.graph if n.op_type == "Constant")
        require(f"the function {f.name} is not inlined" for f in model.functions.values())

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        half = _HALF_FORMATS[self.dtype]
        _require_supported(model, self.keep_fp32, half)
        before = structure(model.graph), model.opset_imports[""]
        if self.dtype == "bfloat16":
            model.opset_imports[""] = _BFLOAT16_OPSET
        _infer_types(model)
        nodes = list(model.graph)
        beyond = [str(node.name) for node in nodes if holds_beyond(node, half.largest)]
        keep = [*self.keep_fp32, *beyond]
        single = single_precision(nodes, keep, half.lacking, half.smallest_normal)
        _Converter(model.graph, half).run(nodes, single)
        after = structure(model.graph), model.opset_imports[""]
        return ir.passes.PassResult(model, after != before)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node that mixes FP32 and half against its schema."""
        half, opset = _HALF_FORMATS[self.dtype].type, model.opset_imports[""]
        ensure(
            f"{node.name} reads both FP32 and {self.dtype}"
            for node in model.graph
            if any({ir.DataType.FLOAT, half} <= types for types in _types_of_letters(node, opset))
        )


def _require_supported(model: ir.Model, keep_fp32: Collection[str], half: _HalfFormat) -> None:
    opset = model.opset_imports.get("")
    if opset not in half.opsets:
        raise BuildError(f"opset {opset} has no {half.name} copy", do="export at opset 21")
    names = {node.name for node in model.graph}
    for name in keep_fp32:
        if name not in names:
            raise BuildError("keep_fp32 names a node that the graph lacks", where=name)
    for node in model.graph:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise BuildError(
                f"{node.op_type} has a subgraph, which is not converted", where=node.name
            )


def _infer_types(model: ir.Model) -> None:
    """Give every value a type.

    ONNX's inference leaves out GroupNormalization with a dynamic batch and all that follows; there
    an output has the type of the inputs that share its type letter.
    """
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if value.dtype is None:
                value.dtype = _type_of_kin(node, index, model.opset_imports[""])


def _type_of_kin(node: ir.Node, output: int, opset: int) -> ir.DataType:
    schema = _schema(node, opset)
    for index, value in enumerate(node.inputs if schema else ()):
        alike = schema and _letter(schema.inputs, index) == _letter(schema.outputs, output)
        if alike and value is not None and value.dtype is not None:
            return value.dtype
    raise BuildError(
        f"the type of {node.outputs[output].name} cannot be inferred",
        where=node.name,
        do="check the model with onnx.checker",
    )


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    if not onnx.defs.has(node.op_type, max_inclusive_version=opset, domain=node.domain):
        return None
    return onnx.defs.get_schema(node.op_type, opset, node.domain)


def _letter(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    return parameters[min(index, len(parameters) - 1)].type_str  # the last one may be variadic


def _types_of_letters(node: ir.Node, opset: int) -> list[set[ir.DataType]]:
    """Return the types of the inputs of `node` that must have one type, for each type letter."""
    schema = _schema(node, opset)
    found: dict[str, set[ir.DataType]] = {}
    for index, value in enumerate(node.inputs if schema else ()):
        if schema and value is not None and value.dtype is not None:
            found.setdefault(_letter(schema.inputs, index), set()).add(value.dtype)
    return list(found.values())


def _half_slots(node: ir.Node, opset: int, half: _HalfFormat) -> tuple[set[int], set[int]]:
    """Return the FP32 inputs and outputs of `node`, by index, that may be half precision."""
    schema = _schema(node, opset)
    if schema is None:
        return set(), set()
    able = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if f"tensor({half.name})" in constraint.allowed_type_strs
    }
    inputs = {
        index: _letter(schema.inputs, index)
        for index, value in enumerate(node.inputs)
        if is_float(value) and _letter(schema.inputs, index) in able
    }
    outputs = {
        index
        for index, value in enumerate(node.outputs)
        if is_float(value) and _letter(schema.outputs, index) in inputs.values()
    }
    return set(inputs), outputs


class _Converter:
    """Rewrite one graph in place; a value is converted at most once to each type."""

    def __init__(self, graph: ir.Graph, half: _HalfFormat) -> None:
        self.graph = graph
        self.half = half
        self.converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.masks: set[ir.Value] = set()
        self.single_outputs = {value for value in graph.outputs if is_float(value)}

    def run(self, nodes: Sequence[ir.Node], single: Collection[ir.Node]) -> None:
        opset = self.graph.opset_imports[""]
        # Both are read off the untouched graph: the loop below changes types as it goes.
        able = [node for node in nodes if node not in single and not self.is_added_cast(node)]
        slots = {node: _half_slots(node, opset, self.half) for node in able}
        floats = {value for node in nodes for value in node.inputs if is_float(value)}
        self.masks = {v for v in floats if v is not None and v.is_initializer() and only_masks(v)}
        for node in nodes:
            inputs, outputs = slots.get(node, (set(), set()))
            for index, value in enumerate(node.inputs):
                if value is not None and value in floats and node.op_type not in TYPE_BLIND:
                    wanted = self.half.type if index in inputs else ir.DataType.FLOAT
                    node.replace_input_with(index, self.as_type(value, wanted, before=node))
            for index in outputs:
                node.outputs[index].dtype = self.half.type
        self.restore_outputs()
        self.remove_unused()

    def is_added_cast(self, node: ir.Node) -> bool:
        """Return whether an earlier run put a Cast to half here, which needs no other before it."""
        return node.op_type == "Cast" and str(node.name).endswith(f".to_{self.half.name}")

    def as_type(self, value: ir.Value, wanted: ir.DataType, before: ir.Node | None) -> ir.Value:
        """Return `value` in type `wanted`: itself, a converted constant, or through a Cast."""
        if value.dtype == wanted:
            return value
        key = (value, wanted)
        if key not in self.converted:
            if value.is_initializer():
                self.converted[key] = self.half_initializer(value)
            else:
                suffix = "f32" if wanted == ir.DataType.FLOAT else self.half.name
                cast = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}.to_{suffix}")
                result = cast.outputs[0]
                result.name, result.dtype, result.shape = cast.name, wanted, value.shape
                if before is None:
                    self.graph.append(cast)
                else:
                    self.graph.insert_before(before, cast)
                self.converted[key] = result
        return self.converted[key]

    def half_initializer(self, value: ir.Value) -> ir.Value:
        if value.const_value is None:
            raise BuildError("an initializer without data", where=value.name)
        array = value.const_value.numpy()
        if value in self.masks:
            array = np.where(np.isfinite(array), np.maximum(array, -self.half.largest), array)
        name = f"{value.name}.{self.half.name}"
        half = ir.Value(
            name=name,
            type=ir.TensorType(self.half.type),
            shape=value.shape,
            const_value=ir.tensor(array.astype(self.half.type.numpy()), name=name),
        )
        self.graph.register_initializer(half)
        return half

    def restore_outputs(self) -> None:
        """Add a Cast to each FP32 output that is half now; it takes over the output's name."""
        for index, value in enumerate(self.graph.outputs):
            if value in self.single_outputs and value.dtype == self.half.type:
                name = value.name
                value.name = f"{name}.{self.half.name}"
                result = self.as_type(value, ir.DataType.FLOAT, before=None)
                result.name = name
                self.graph.outputs[index] = result

    def remove_unused(self) -> None:
        """Remove unused constants; a half constant takes over its original's name."""
        originals = [(value, str(value.name)) for value in self.graph.initializers.values()]
        replaced = {
            value: new for (value, _), new in self.converted.items() if value.is_initializer()
        }
        remove_unused(self.graph)
        for value, name in originals:
            if value in replaced and name not in self.graph.initializers:
                replaced[value].name = name
