"""Run in PyTorch what a graph of the export computes, by the names of its inputs and outputs.

The module is the checkpoint's own, loaded again: neither the exporter nor ONNX Runtime has a part
in it. So it is a second opinion on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...errors import ExportError
from .vq import VqTokenizer
from .vq_graphs import TokenizerGraphs, vq_graphs

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TorchGraph:
    """Hold a module, the names of what it takes in order, and of what it gives."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one run; feeds that the module does not take are passed over.

        Raises:
            ExportError: a feed is missing, or the module gives another number of outputs.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise ExportError(
                f"has no {', '.join(missing)} among its feeds", where=type(self.module).__name__
            )
        given = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.inputs]
        found = self.module.eval()(*given)
        values = found if isinstance(found, tuple | list) else (found,)
        if len(values) != len(self.outputs):
            raise ExportError(
                f"gives {len(values)} outputs, where {len(self.outputs)} have names",
                where=type(self.module).__name__,
            )
        return {name: v.numpy() for name, v in zip(self.outputs, values, strict=True)}


def vq_torch_graphs(
    model: VqTokenizer, graphs: TokenizerGraphs | None = None
) -> dict[str, TorchGraph]:
    """Return both halves of a tokenizer of codes; `graphs` where they are not `vq_graphs`'."""
    graphs = graphs or vq_graphs(model)
    return {
        "encoder": TorchGraph(graphs.encoder, ("image",), ("indices", "latent")),
        "decoder": TorchGraph(graphs.decoder, ("indices",), ("image",)),
    }
