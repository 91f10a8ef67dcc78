"""Export LlamaGen's VQ alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shared.job import ExportJob
from ..shared.tokenizer_export import MapTokenizerExporter

if TYPE_CHECKING:
    from torch import Tensor

    from .model import LlamagenVq


class LlamagenVqExporter(MapTokenizerExporter):
    """Exports LlamaGen's VQ."""

    part = "a LlamaGen VQ tokenizer"

    def load(self, job: ExportJob, tensors: dict[str, Tensor]) -> LlamagenVq:
        """Load it from its tensors, strictly."""
        from .model import load_llamagen_vq

        return load_llamagen_vq(tensors, job.spec)
