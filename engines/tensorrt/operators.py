"""Say what TensorRT for RTX cannot build, by operator, type and attributes, without the builder.

Read off its parser and builder (1.7.1) by giving it ONNX's own tests of every operator, 597 graphs
of one node (onnx 1.23.2). A test compares the table with the parser where that is installed. The
half-precision copy that engines are built from has limits of its own, which are here too.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from .half_precision import HALF_OPSETS

ONNX_DOMAINS = ("", "ai.onnx")
# The parser has no importer for these.
UNKNOWN = frozenset(
    """
    AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad
    Col2Im Compress ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear
    ImageDecoder MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
    QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase
    SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat
    StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique
    """.split()  # noqa: SIM905
)
# The parser imports these into plug-ins or kernels that the package does not have.
WITHOUT_KERNEL = frozenset(
    ("CausalConvWithState", "LinearAttention", "NonMaxSuppression", "NonZero", "RoiAlign")
)
# Their second input must be a constant.
CONSTANT_AXES = frozenset(
    """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Squeeze Unsqueeze
    """.split()  # noqa: SIM905
)
WITHOUT_TYPE = frozenset(
    {
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.STRING,
        ir.DataType.COMPLEX64,
        ir.DataType.COMPLEX128,
    }
)
RANDOM = frozenset(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()  # noqa: SIM905
)
DRAWS = "it draws random numbers: two runs differ, so that no error can be measured behind it"


def build_obstacle(node: ir.Node) -> str | None:
    """Say why TensorRT for RTX cannot build a node, None if nothing is known to be in the way."""
    if node.domain not in ONNX_DOMAINS:
        return f"an operator of {node.domain}, not of ONNX"
    if node.op_type in UNKNOWN:
        return "TensorRT for RTX does not know this operator"
    if node.op_type in WITHOUT_KERNEL:
        return "TensorRT for RTX has no kernel for this operator"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in attributes(node)):
        return "it runs a graph of its own, which the half-precision copy does not take"
    return type_obstacle(node) or attribute_obstacle(node)


def opset_obstacle(opset: int) -> str | None:
    """Say why a graph of an opset has no half-precision copy, and so no TensorRT engine."""
    if opset in HALF_OPSETS:
        return None
    return (
        f"opset {opset}: half-precision copies are made of opset {HALF_OPSETS[0]} to "
        f"{HALF_OPSETS[-1]}; export the model at opset 21"
    )


def attributes(node: ir.Node) -> Collection[ir.Attr]:
    return [a for a in node.attributes.values() if not a.is_ref()]


def type_obstacle(node: ir.Node) -> str | None:
    """Return what is wrong with the types of a node's tensors, or None.

    UINT8 may enter or leave a graph by a Cast alone.
    """
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            return f"{value.name} is a sequence or optional, not a tensor"
        if value.dtype in WITHOUT_TYPE:
            return f"{value.name} is {value.dtype.name.lower()}, a type that engines lack"
        if value.dtype == ir.DataType.UINT8 and node.op_type != "Cast":
            return f"{value.name} is uint8, which engines take at a graph's border alone"
    return None


def attribute_obstacle(node: ir.Node) -> str | None:
    """Return which attribute or input of a known operator is not built, or None."""
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type in CONSTANT_AXES and second is not None and not is_constant(second):
        return "its axes are computed in the graph"
    if node.op_type == "Resize" and node.attributes.get_int("antialias"):
        return "a Resize with antialias"
    if node.op_type == "LayerNormalization" and any(v.uses() for v in node.outputs[1:]):
        return "a LayerNormalization that gives its mean or deviation too"
    if node.op_type == "STFT" and second is not None and not is_constant(second):
        return "its frame step is computed in the graph"
    return None


def is_constant(value: ir.Value) -> bool:
    return value.const_value is not None
