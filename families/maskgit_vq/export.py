"""Export a MaskGIT-VQ alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shared.job import ExportJob
from ..shared.tokenizer_export import MapTokenizerExporter

if TYPE_CHECKING:
    from torch import Tensor

    from .model import MaskgitVq


class MaskgitVqExporter(MapTokenizerExporter):
    """Exports a MaskGIT-VQ."""

    part = "a MaskGIT-VQ tokenizer"

    def load(self, job: ExportJob, tensors: dict[str, Tensor]) -> MaskgitVq:
        """Load it from its tensors, strictly."""
        from .model import load_maskgit_vq

        return load_maskgit_vq(tensors, job.spec)
