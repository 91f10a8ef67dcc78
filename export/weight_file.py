"""One file of weights for all graphs of a model, each tensor stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx_ir as ir
import torch

from .graph_passes import sign
from .linear_passes import TransposedTensor

WEIGHTS = "model.onnx.data"
INLINE = 1024  # bytes; tensors up to this stay in the graph, as onnx_ir leaves them
PAGE = 4096  # so that a loader can map each tensor


class WeightFile:
    """Writes graphs whose large initializers lie in one file; equal contents share their place.

    Tensors are read, written and let go one at a time, so lazy ones never exist together. A weight
    that several graphs take from the same memory is read for the first alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[tuple[bytes, int], int] = {}
        # The arrays are kept, so that no other takes their address.
        self._sources: dict[Hashable, tuple[object, int]] = {}

    def __enter__(self) -> Self:
        self._stream = (self._folder / WEIGHTS).open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def save(self, model: ir.Model, name: str, properties: dict[str, str]) -> None:
        """Write `name`.onnx; the model's large initializers then refer to the file."""
        sign(model, properties)
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            if value.const_value.nbytes > INLINE:
                value.const_value = self._place(value.const_value, str(value.name))
            elif isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=str(value.name))
        self._stream.flush()
        ir.save(model, self._folder / f"{name}.onnx")

    def _place(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        source, held = find_source(tensor)
        if source not in self._sources:
            self._sources[source] = held, self._write(tensor.tobytes())
        return ir.ExternalTensor(
            WEIGHTS,
            self._sources[source][1],
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self._folder,
        )

    def _write(self, data: bytes) -> int:
        """Where the bytes lie in the file."""
        key = (hashlib.sha256(data).digest(), len(data))
        if key not in self._places:
            self._stream.write(bytes(-self._stream.tell() % PAGE))
            self._places[key] = self._stream.tell()
            self._stream.write(data)
        return self._places[key]


def find_source(tensor: ir.TensorProtocol) -> tuple[Hashable, object]:
    """What is equal for tensors of the same elements in the same memory, and whose memory it is."""
    transposed = isinstance(tensor, TransposedTensor)
    base = tensor.source if isinstance(tensor, TransposedTensor) else tensor
    held = getattr(base, "raw", None)
    if isinstance(held, torch.Tensor):
        return (transposed, held.data_ptr(), held.dtype, held.shape, held.stride()), held
    # What else a tensor wraps may be more than its own elements: a mapped file holds many.
    return (transposed, id(base)), base
