"""Read the products of an ONNX graph: their multiplications at given shapes, and their weights.

Shapes follow from ONNX's inference, which stops at some operators on shapes (Max in a size check):
there integers that follow from the input shapes are computed and written into the graph. Weights
are not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

    from .build import Profiles

WeightKind = Literal["int8", "int4", "fp8", "fp4"]

PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
# What may lie between a constant and its Dequantize, and between that or a softmax and its product.
ON_THE_WAY = ("Cast", "Clip", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
LARGEST = 4096  # elements of an integer tensor that is computed; shapes are far smaller
ROUNDS = 8  # of inference and folding; var-mini and the tokenizers need two


@dataclass(frozen=True, slots=True)
class Product:
    """Describe a product; ``macs`` is None where its shapes do not follow from the inputs'.

    ``weight`` is the type of a constant weight that ``dequantize``, a node's name, expands.
    """

    node: str
    op: str
    macs: int | None
    weight: WeightKind | None = None
    dequantize: str = ""


@dataclass(frozen=True, slots=True)
class Products:
    """Hold a graph's products in order, and the names of the softmaxes between two of them."""

    products: tuple[Product, ...]
    attentions: tuple[str, ...]


def read_products(path: Path, profiles: Profiles) -> Products:
    """Return the products of a graph at the best shapes of `profiles`."""
    model = read_graph(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    attentions = attention_softmaxes(model.graph.node)
    shapes = fixed_shapes(model, {name: best for name, (_, best, _) in profiles.items()})
    found = []
    for node in nodes:
        weight, dequantize = weight_of(node, makers, constants)
        macs = multiplications(node, shapes)
        found.append(Product(node.name, node.op_type, macs, weight, dequantize))
    return Products(tuple(found), attentions)


def read_graph(path: Path) -> onnx.ModelProto:
    """Return a graph without the constants that lie beside it."""
    import onnx

    return onnx.load(path, load_external_data=False)


def weight_of(
    node: onnx.NodeProto, makers: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[WeightKind | None, str]:
    """Return the type of a product's quantized constant weight and the node that expands it."""
    from onnx import TensorProto

    kinds: dict[int, WeightKind] = {
        TensorProto.INT8: "int8",
        TensorProto.INT4: "int4",
        TensorProto.FLOAT8E4M3FN: "fp8",
        TensorProto.FLOAT4E2M1: "fp4",
    }
    for value in reversed(node.input[:2]):
        maker = behind(value, makers)
        if maker is not None and maker.op_type == "DequantizeLinear":
            source = behind(maker.input[0], makers)
            held = constants.get(maker.input[0] if source is None else source.input[0])
            if held is not None and held.data_type in kinds:
                return kinds[held.data_type], maker.name
    return None, ""


def behind(value: str, makers: Mapping[str, Any]) -> Any:
    """Return the node that computes a value, before what only moves or converts it, or None."""
    maker = makers.get(value)
    while maker is not None and maker.op_type in ON_THE_WAY and maker.input[0] in makers:
        maker = makers[maker.input[0]]
    return maker


def attention_softmaxes(nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Return the names of softmaxes whose result is the operand of a product."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = []
    for softmax in (node for node in nodes if node.op_type == "Softmax"):
        stack = [*readers.get(softmax.output[0], ())]
        while stack:
            reader = stack.pop()
            if reader.op_type in ("MatMul", "Einsum"):
                found.append(softmax.name)
                break
            if reader.op_type in (*ON_THE_WAY, *QUANTIZERS):
                stack += readers.get(reader.output[0], ())
    return tuple(found)


def multiplications(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the multiplications of a product; None if a shape is not known."""
    left, right, out = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
    if left is None or right is None or out is None:
        return None
    flags = {a.name: a for a in node.attribute}
    match node.op_type:
        case "MatMul":
            return math.prod(out) * left[-1]
        case "Gemm":
            transposed = "transA" in flags and flags["transA"].i
            return math.prod(out) * left[0 if transposed else 1]
        case "Conv":
            return math.prod(out) * math.prod(right[1:])
        case "ConvTranspose":
            return math.prod(left) * math.prod(right[1:])
    terms = flags["equation"].s.decode().replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or any(len(t) != len(s) for t, s in zip(terms, (left, right), strict=True)):
        return None
    sizes = dict(zip("".join(terms), (*left, *right), strict=True))
    return math.prod(sizes.values())


def fixed_shapes(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Return all shapes that follow from those of the inputs; `model` is changed on the way."""
    return known_shapes(with_fixed_shapes(model, inputs))


def with_fixed_shapes(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """Return a graph with the types and shapes that follow from the given shapes of inputs.

    It is for looking at: what computes integers that follow too is gone, they are constants.
    """
    from onnx import shape_inference

    for value in model.graph.input:
        if value.name in inputs:
            axes = value.type.tensor_type.shape.dim
            for axis, size in zip(axes, inputs[value.name], strict=True):
                axis.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":  # ONNX 1.23 infers no shape behind it
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    for _ in range(ROUNDS):
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not fold_integers(model, known_shapes(model)):
            break
    return model


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            found[value.name] = tuple(axis.dim_value for axis in kind.shape.dim)
    return found


def fold_integers(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Replace nodes that compute small integer tensors from known ones; return how many."""
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    opsets = {each.domain: each.version for each in model.opset_import}
    values = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
        and tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        and math.prod(tensor.dims) <= LARGEST
    }
    kept, folded = [], 0
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names[0] in shapes:
            flags = {a.name: a.i for a in node.attribute}
            sizes = shapes[names[0]][flags.get("start", 0) : flags.get("end")]
            results: Any = [np.array(sizes, np.int64)]
        elif names and not node.domain and all(name in values for name in names):
            run = ReferenceEvaluator(node, opsets=opsets)
            results = run.run(None, {name: values[name] for name in names})
        else:
            kept.append(node)
            continue
        if any(r.dtype.kind not in "ib" or r.size > LARGEST for r in map(np.asarray, results)):
            kept.append(node)
            continue
        for name, result in zip(node.output, map(np.asarray, results), strict=True):
            values[name] = result
            model.graph.initializer.append(numpy_helper.from_array(result, name))
        folded += 1
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return folded
