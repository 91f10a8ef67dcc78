"""Describe models as Triton Inference Server reads them: `config.pbtxt`, a text of protobuf.

Fields and rules are those of `model_config.proto` (triton-inference-server/common) and of the
server's checks. Where every input and output of a graph begins with its batch axis, the server
joins requests, and `dims` leave that axis out; any other graph gets whole shapes and no batching.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx.shape_inference import InferenceError, infer_shapes

from ...errors import WorkspaceError
from ...graph.io import read_proto
from ..tensorrt.profiles import Profiles, Shape
from .text_proto import EnumName, Message, text_proto

ServedKind = Literal["onnxruntime", "tensorrt"]

PLATFORMS: dict[ServedKind, str] = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
}
# The server sets no optimizer aside and takes none of the session's entries, and above this level
# (BASIC) ONNX Runtime fuses Q/DQ pairs wrongly and rounds the inputs of weight-only products.
BASIC_OPTIMIZATIONS = -1
# By ONNX's types; the second value says whether TensorRT's engines have such inputs and outputs.
DATA_TYPES: dict[int, tuple[str, bool]] = {
    onnx.TensorProto.BOOL: ("TYPE_BOOL", True),
    onnx.TensorProto.UINT8: ("TYPE_UINT8", True),
    onnx.TensorProto.UINT16: ("TYPE_UINT16", False),
    onnx.TensorProto.UINT32: ("TYPE_UINT32", False),
    onnx.TensorProto.UINT64: ("TYPE_UINT64", False),
    onnx.TensorProto.INT8: ("TYPE_INT8", True),
    onnx.TensorProto.INT16: ("TYPE_INT16", False),
    onnx.TensorProto.INT32: ("TYPE_INT32", True),
    onnx.TensorProto.INT64: ("TYPE_INT64", True),
    onnx.TensorProto.FLOAT16: ("TYPE_FP16", True),
    onnx.TensorProto.FLOAT: ("TYPE_FP32", True),
    onnx.TensorProto.DOUBLE: ("TYPE_FP64", False),
    onnx.TensorProto.BFLOAT16: ("TYPE_BF16", True),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Describe an input or output of a served model.

    `dims` are without the batch axis of a model that batches; -1 is any size. A tensor that is the
    batch axis alone gets the dims [1], since none may be empty, and is `flattened` for the graph.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    flattened: bool = False

    def message(self) -> Message:
        shape = {"reshape": {"shape": ()}} if self.flattened else {}
        kind = EnumName(self.data_type)
        return {"name": self.name, "data_type": kind, "dims": self.dims, **shape}


@dataclass(frozen=True, slots=True)
class Model:
    """Describe a graph that is served; a `max_batch` of 0 is a model that does not batch."""

    name: str
    graph: str
    kind: ServedKind
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def config(self) -> str:
        """Return the text of its `config.pbtxt`."""
        device = EnumName("KIND_CPU" if self.kind == "onnxruntime" else "KIND_GPU")
        message: dict[str, Any] = {
            "name": self.name,
            "platform": PLATFORMS[self.kind],
            "backend": self.kind,
            **ends_message(self.max_batch, self.inputs, self.outputs),
            # One, since ONNX Runtime gets two on a CPU where nothing is said.
            "instance_group": ({"count": 1, "kind": device},),
        }
        if self.kind == "onnxruntime":
            message["optimization"] = {"graph": {"level": BASIC_OPTIMIZATIONS}}
        if self.max_batch > 1:
            message["dynamic_batching"] = {}
        return text_proto(message)


def ends_message(max_batch: int, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Message:
    return {
        "max_batch_size": max_batch,
        "input": tuple(tensor.message() for tensor in inputs),
        "output": tuple(tensor.message() for tensor in outputs),
    }


def read_model(
    path: Path,
    name: str,
    kind: ServedKind,
    *,
    batches: bool,
    max_batch: int,
    profiles: Profiles | None = None,
) -> Model:
    """Describe a graph, or the TensorRT engine that was built from it.

    `batches` says that a dynamic first axis which all inputs and outputs share is the batch.
    `profiles` are the shapes that a TensorRT engine takes, by input; one that is not there is
    fixed. Without, `max_batch` is the most that is asked of the model.

    Raises:
        WorkspaceError: a type, or a tensor without axes, that the back end does not serve.
    """
    graph = inferred(read_proto(path)).graph
    batched = batches and share_dynamic_axis((*graph.input, *graph.output), path)
    if batched and profiles is not None:
        largest = [batch_limit(profiles.get(value.name)) for value in graph.input]
        max_batch = min(largest, default=0)
        batched = max_batch > 0
    inputs = [tensor(value, path, kind, batched, profiles) for value in graph.input]
    outputs = [tensor(value, path, kind, batched, None) for value in graph.output]
    if any(0 in each.dims for each in outputs):
        raise WorkspaceError(
            "has an output without elements, which Triton does not serve",
            where=str(path),
            do="leave that output out of the graph",
        )
    # An input of length 0, as a cache before its first step, is one of any length to the server.
    inputs = [replace(t, dims=tuple(size or -1 for size in t.dims)) for t in inputs]
    most = max_batch if batched else 0
    return Model(name, path.stem, kind, most, tuple(inputs), tuple(outputs))


def share_dynamic_axis(values: Sequence[onnx.ValueInfoProto], path: Path) -> bool:
    """Return whether all values begin with a dynamic axis of one name; nameless ones may differ."""
    first = {shape_of(value, path)[:1] for value in values}
    axis = next(iter(first)) if len(first) == 1 else ()
    return bool(axis) and isinstance(axis[0], str) and bool(axis[0])


def batch_limit(profile: tuple[Shape, Shape, Shape] | None) -> int:
    """Return the largest batch that an engine's input takes; 0 for one that one image does not fit.

    An input without a profile is of one size.
    """
    low, _, high = profile or ((0,), (0,), (0,))
    return high[0] if low[0] == 1 else 0


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose outputs have the sizes that follow from its nodes.

    ONNX Runtime reports those, not what the file says, and the server compares them exactly.
    """
    try:
        return infer_shapes(proto, data_prop=True)
    except InferenceError:  # of operators that onnx does not know: what the file says remains
        return proto


def shape_of(value: onnx.ValueInfoProto, path: Path) -> tuple[int | str, ...]:
    """Return sizes, or names of dynamic axes ("" for one without a name).

    Raises:
        WorkspaceError: it is not said how many axes there are.
    """
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise WorkspaceError(
            f"{value.name} has no shape, and Triton wants one",
            where=str(path),
            do="save the model with the shapes of its inputs and outputs",
        )
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)


def tensor(
    value: onnx.ValueInfoProto,
    path: Path,
    kind: ServedKind,
    batched: bool,
    profiles: Profiles | None,
) -> Tensor:
    """Describe an input or output; an axis that a profile fixes is fixed to clients too."""
    elements = value.type.tensor_type.elem_type
    data_type, in_tensorrt = DATA_TYPES.get(elements, ("", False))
    if not data_type or (kind == "tensorrt" and not in_tensorrt):
        text = onnx.TensorProto.DataType.Name(elements)
        raise refused(f"{value.name} is of type {text}", path, kind)
    dims = [-1 if isinstance(size, str) else size for size in shape_of(value, path)]
    if profiles and value.name in profiles:
        low, _, high = profiles[value.name]
        dims = [a if a == b else size for a, b, size in zip(low, high, dims, strict=True)]
    if batched:
        dims = dims[1:]
    elif not dims and kind == "tensorrt":  # ONNX Runtime's takes [1] for it, TensorRT's nothing
        raise refused(f"{value.name} has no axes", path, kind)
    return Tensor(value.name, data_type, tuple(dims) or (1,), flattened=batched and not dims)


def refused(what: str, path: Path, kind: ServedKind) -> WorkspaceError:
    return WorkspaceError(
        f"{what}, which Triton's {kind} backend does not take",
        where=str(path),
        do="serve another group: --group NAME",
    )
