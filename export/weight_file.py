"""Write the file of weights of an export; a weight that several graphs take is read once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType

import onnx_ir as ir
import torch

from ..graph.weight_file import SharedWeights
from .passes.linears import TransposedTensor
from .passes.naming import SignPass


class WeightFile(SharedWeights):
    """Write graphs, signed, over one file of weights.

    Tensors of the same memory are read for the first graph alone.
    """

    def __init__(self, folder: Path, told: Callable[[int, str], None] | None = None) -> None:
        """Open nothing yet; `told` gets the number of graphs so far, and the last one's name."""
        super().__init__(folder)
        self._told, self._graphs = told, 0
        # Holds the arrays until the file is closed, so that no other array gets their address.
        self._sources: dict[Hashable, tuple[object, int]] = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sources.clear()
        super().__exit__(kind, error, trace)

    def save(self, model: ir.Model, name: str, properties: dict[str, str]) -> None:
        """Write `name`.onnx; the model's large initializers then refer to the file."""
        SignPass(properties)(model)
        self.write(model, name)
        self._graphs += 1
        if self._told is not None:
            self._told(self._graphs, name)

    def _place(self, tensor: ir.TensorProtocol) -> int:
        source, held = find_source(tensor)
        if source not in self._sources:
            self._sources[source] = held, super()._place(tensor)
        return self._sources[source][1]


def find_source(tensor: ir.TensorProtocol) -> tuple[Hashable, object]:
    """Return a key that is equal for equal elements of one memory, and the memory's owner."""
    transposed = isinstance(tensor, TransposedTensor)
    base = tensor.source if isinstance(tensor, TransposedTensor) else tensor
    held = getattr(base, "raw", None)
    if isinstance(held, torch.Tensor):
        return (transposed, held.data_ptr(), held.dtype, held.shape, held.stride()), held
    # The base of a tensor may have more than its elements, such as a mapped file of many tensors.
    return (transposed, id(base)), base
