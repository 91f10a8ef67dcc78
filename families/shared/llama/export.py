"""Export families with LlamaGen's transformer and its tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...llamagen_vq.config import VQ16_FILE
from ..exporter import TokenMapExporter
from ..job import ExportJob

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ....export.facts import Difference
    from ....export.weight_file import WeightFile
    from ....graph.sites import Site
    from ...llamagen_vq.model import LlamagenVq
    from ..cached_steps import Bounds
    from .model import LlamaTransformer

Model = TypeVar("Model", bound="LlamaTransformer")


class LlamaExporter(TokenMapExporter[Model, "LlamagenVq"]):
    """Exports LlamaGen's transformer, or one like it, and a LlamaGen VQ."""

    tokenizer_file = f"{VQ16_FILE}.pt"

    @abstractmethod
    def bounds(self, model: Model) -> Bounds:
        """Return the steps at which the step graph is compared, of every kind."""

    def load_tokenizer(self, job: ExportJob, tensors: dict[str, Tensor]) -> LlamagenVq:
        """Load the tokenizer from its tensors, strictly."""
        from ...llamagen_vq.model import load_llamagen_vq

        return load_llamagen_vq(tensors, job.spec)

    def usual_side(self, model: Model) -> int:
        """Return the side of the token map."""
        return model.config.side

    def write_transformer(
        self, job: ExportJob, model: Model, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write step and full."""
        from .write import export_llama

        return export_llama(model, weights, properties, job.form)

    def teacher_forced(self, model: Model) -> Module:
        """Return the module of full.onnx."""
        from .graphs import TeacherForcedGraph

        return TeacherForcedGraph(model)

    def step_references(
        self, job: ExportJob, model: Model, labels: Tensor, tokens: Tensor
    ) -> Callable[[Path], tuple[Difference, ...]]:
        """Compute what step and full should."""
        from ..cached_steps import check_parity, compute_step_references

        references = compute_step_references(model, labels, tokens[:, : model.shown], job.form)
        bounds = self.bounds(model)
        return lambda folder: check_parity(folder, references, bounds)
