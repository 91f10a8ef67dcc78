"""Store the weights of all graphs of a model in one file, each tensor once."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import onnx_ir as ir

WEIGHTS = "model.onnx.data"
INLINE = 1024  # bytes; tensors up to this stay in the graph, as onnx_ir leaves them
PAGE = 4096  # alignment, so that a loader can map each tensor


Own = TypeVar("Own", bound="SharedWeights")


class SharedWeights:
    """Write graphs whose large initializers lie in one file; equal contents are stored once.

    Tensors are read, written and let go one at a time, so lazy ones never exist together.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[tuple[bytes, int], int] = {}

    def __enter__(self: Own) -> Own:
        self._stream = (self._folder / WEIGHTS).open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def write(self, model: ir.Model, name: str) -> None:
        """Write `name`.onnx; the model's large initializers then refer to the file."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes > INLINE:
                value.const_value = ir.ExternalTensor(
                    WEIGHTS,
                    self._place(tensor),
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(value.name),
                    base_dir=self._folder,
                )
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy(), name=str(value.name))
        self._stream.flush()
        ir.save(model, self._folder / f"{name}.onnx")

    def _place(self, tensor: ir.TensorProtocol) -> int:
        """Return the offset of the tensor in the file, which is extended if the content is new."""
        data = little_endian(tensor)
        key = (hashlib.sha256(data).digest(), len(data))
        if key not in self._places:
            self._stream.write(bytes(-self._stream.tell() % PAGE))
            self._places[key] = self._stream.tell()
            self._stream.write(data)
        return self._places[key]


def little_endian(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """Return a tensor's bytes as ONNX stores them: its own memory, where that has this form."""
    array = tensor.numpy()
    plain = array.flags.c_contiguous and array.dtype.isbuiltin and sys.byteorder == "little"
    if plain and array.nbytes == tensor.nbytes:
        return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()
