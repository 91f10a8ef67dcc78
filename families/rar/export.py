"""What the export of a RAR writes, of transformer and MaskGIT-VQ, and how it is compared."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.shape import DYNAMIC, ExportShape
from ..shared.isolated_export import GeneratorExporter
from ..shared.job import (
    ExportJob,
    guided_labels,
    load_parts,
    parity_results,
    refuse_static,
    write_parts,
)
from .spec import RarDefaults, RarSpec

if TYPE_CHECKING:
    from ..maskgit_vq.config import MaskgitVqConfig
    from ..maskgit_vq.model import MaskgitVq
    from .config import RarConfig
    from .model import RarTransformer


class RarExporter(GeneratorExporter):
    """Exports a RAR and its tokenizer."""

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raises ExportError for fixed shapes: a graph a step would be too many."""
        refuse_static(name, form, "one token")

    def write_graphs(self, job: ExportJob, folder: Path) -> dict[str, int]:
        """All that the export leaves; returns the parameters of each half."""
        from ...export.checkpoint.config_json import read_beside
        from ..shared.vq_export import export_vq
        from .config import RarJson
        from .write import export_rar

        model, vq = load_models(job)
        sampling = read_beside(job.paths[0].parent, RarJson).sampling
        return write_parts(
            job,
            folder,
            (model, vq),
            describe(model.config, vq.config, job.form, sampling),
            lambda weights, properties: (
                *export_vq(vq, weights, properties),
                *export_rar(model, weights, properties, job.form),
            ),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> dict[str, Any]:
        """Both halves of the model, each let go before its graphs are opened; for the manifest.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """
        import torch

        from ..shared.vq_parity import check_vq_parity, compute_vq_references
        from .parity import check_rar_parity, compute_rar_references

        model, vq = load_models(job)
        tokenizer = compute_vq_references(vq, job.pictures(model.config.side * vq.config.stride))
        shown = torch.from_numpy(tokenizer.indices[:1]).flatten(1).repeat(2, 1)
        labels = guided_labels(model.config.num_classes)
        references = compute_rar_references(model, labels, shown, job.form)
        del model, vq
        gc.collect()
        tokens, differences = check_vq_parity(folder, tokenizer)
        return parity_results(tokens, (*differences, *check_rar_parity(folder, references)))


def load_models(job: ExportJob) -> tuple[RarTransformer, MaskgitVq]:
    """As `load_parts`: of one codebook."""
    from ..maskgit_vq.model import load_maskgit_vq
    from .checkpoint import load_rar
    from .variants import TOKENIZER

    return load_parts(
        job,
        f"{TOKENIZER}.bin",
        lambda tensors: load_rar(tensors, job.spec),
        lambda tensors, _: load_maskgit_vq(tensors, job.spec),
        ("vocab_size",),
    )


def describe(
    config: RarConfig,
    tokenizer: MaskgitVqConfig,
    form: ExportShape = DYNAMIC,
    sampling: RarDefaults | None = None,
) -> RarSpec:
    """What the runtime needs to know of the generator; `sampling` instead of the published one."""
    from .config import sampling_of

    return RarSpec(
        side=config.side,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        image_size=config.side * tokenizer.stride,
        defaults=sampling or sampling_of(config),
        kv_type=form.kv_type,
    )
