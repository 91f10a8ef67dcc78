"""What the export of a PAR writes, of transformer and LlamaGen VQ, and how it is compared."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...export.shape import DYNAMIC, ExportShape
from ...runtime.spec import Defaults
from ..shared.isolated_export import GeneratorExporter
from ..shared.job import (
    ExportJob,
    guided_labels,
    load_parts,
    parity_results,
    refuse_static,
    write_parts,
)
from .spec import ParSpec, generation_order

if TYPE_CHECKING:
    from ..llamagen_vq.config import LlamagenVqConfig
    from ..llamagen_vq.model import LlamagenVq
    from .config import ParConfig, ParJson
    from .model import ParTransformer


class ParExporter(GeneratorExporter):
    """Exports a PAR and its tokenizer."""

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raises ExportError for fixed shapes: a graph a step would be too many."""
        refuse_static(name, form, "a few tokens")

    def write_graphs(self, job: ExportJob, folder: Path) -> dict[str, int]:
        """All that the export leaves; returns the parameters of each half."""
        from ..shared.vq_export import export_vq
        from .write import export_par

        model, vq = load_models(job)
        side = model.config.side
        return write_parts(
            job,
            folder,
            (model, vq),
            describe(model.config, vq.config, job.form, read_config_json(job).sampling),
            lambda weights, properties: (
                *export_vq(vq, weights, properties, side=side),
                *export_par(model, weights, properties, job.form),
            ),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> dict[str, Any]:
        """Both halves of the model, each let go before its graphs are opened; for the manifest.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """
        import torch

        from ..shared.vq_parity import check_vq_parity, compute_vq_references
        from .parity import check_par_parity, compute_par_references

        model, vq = load_models(job)
        config = model.config
        tokenizer = compute_vq_references(vq, job.pictures(config.side * vq.config.stride))
        order = generation_order(config.side, config.group)
        shown = np.tile(tokenizer.indices[0].reshape(-1)[order], (2, 1))
        labels = guided_labels(config.num_classes)
        references = compute_par_references(model, labels, torch.from_numpy(shown), job.form)
        del model, vq
        gc.collect()
        tokens, differences = check_vq_parity(folder, tokenizer)
        return parity_results(tokens, (*differences, *check_par_parity(folder, references)))


def load_models(job: ExportJob) -> tuple[ParTransformer, LlamagenVq]:
    """As `load_parts`: of one codebook."""
    from ..llamagen_vq.model import load_llamagen_vq
    from .checkpoint import load_par
    from .variants import VQ16

    said = read_config_json(job)
    halves = load_parts(
        job,
        f"{VQ16}.pt",
        lambda tensors: load_par(tensors, job.spec, said),
        lambda tensors, _: load_llamagen_vq(tensors, job.spec),
        ("vocab_size",),
    )
    if job.entry.config is None and said.block_size is None:
        length = halves[0].config.length
        job.reporter.say(f"no config.json says block_size: {length}, as of the published size")
    return halves


def read_config_json(job: ExportJob) -> ParJson:
    """What the `config.json` beside the weights says."""
    from ...export.checkpoint.config_json import read_beside
    from .config import ParJson

    return read_beside(job.paths[0].parent, ParJson)


def describe(
    config: ParConfig,
    tokenizer: LlamagenVqConfig,
    form: ExportShape = DYNAMIC,
    sampling: Defaults | None = None,
) -> ParSpec:
    """What the runtime needs to know of the generator; `sampling` instead of the published one."""
    from .config import sampling_of

    return ParSpec(
        side=config.side,
        group=config.group,
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
