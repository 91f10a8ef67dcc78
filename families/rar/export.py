"""Export a RAR with its MaskGIT-VQ and compare the graphs with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...export.shape import DYNAMIC, ExportShape
from ..maskgit_vq.variants import NAME as TOKENIZER
from ..shared.exporter import TokenMapExporter, raster_fields
from ..shared.job import ExportJob
from .config import RarConfig, RarJson, sampling_of
from .spec import RarDefaults, RarSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ...export.facts import Difference
    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ..maskgit_vq.config import MaskgitVqConfig
    from ..maskgit_vq.model import MaskgitVq
    from .model import RarTransformer


class RarExporter(TokenMapExporter["RarTransformer", "MaskgitVq"]):
    """Exports a RAR and its tokenizer."""

    part = "a RAR transformer"
    tokenizer_file = f"{TOKENIZER}.bin"
    growth = "one token"

    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> RarTransformer:
        """Load the transformer."""
        from .checkpoint import load_rar

        return load_rar(tensors, job.spec)

    def load_tokenizer(self, job: ExportJob, tensors: dict[str, Tensor]) -> MaskgitVq:
        """Load the tokenizer."""
        from ..maskgit_vq.model import load_maskgit_vq

        return load_maskgit_vq(tensors, job.spec)

    def spec(self, job: ExportJob, model: RarTransformer, tokenizer: MaskgitVq) -> RarSpec:
        """Return what the runtime needs to know of the generator."""
        from ...export.checkpoint.config_json import read_beside

        sampling = read_beside(job.paths[0].parent, RarJson).sampling
        return generator_spec(model.config, tokenizer.config, job.form, sampling)

    def write_transformer(
        self, job: ExportJob, model: RarTransformer, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write condition, step and full."""
        from .write import export_rar

        return export_rar(model, weights, properties, job.form)

    def teacher_forced(self, model: RarTransformer) -> Module:
        """Return the module of full.onnx."""
        from .graphs import TeacherForcedGraph

        return TeacherForcedGraph(model)

    def step_references(
        self, job: ExportJob, model: RarTransformer, labels: Tensor, tokens: Tensor
    ) -> Callable[[Path], tuple[Difference, ...]]:
        """Compute what the steps should."""
        from .parity import check_rar_parity, compute_rar_references

        references = compute_rar_references(model, labels, tokens, job.form)
        return lambda folder: check_rar_parity(folder, references)


def generator_spec(
    config: RarConfig,
    tokenizer: MaskgitVqConfig,
    form: ExportShape = DYNAMIC,
    sampling: RarDefaults | None = None,
) -> RarSpec:
    """Return what the runtime needs to know; `sampling` instead of the published one."""
    fields = raster_fields(config, tokenizer.stride, form)
    return RarSpec(**fields, defaults=sampling or sampling_of(config))
