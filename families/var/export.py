"""What the export of a VAR writes, from a transformer and its VQVAE, and how it is compared."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ...export.shape import DYNAMIC, ExportShape
from ...runtime.spec import Defaults
from ..shared.isolated_export import GeneratorExporter
from ..shared.job import ExportJob, guided_labels, load_parts, parity_results, write_parts
from .spec import VarSpec

if TYPE_CHECKING:
    from ..var_vqvae.model import VarVqvae
    from .config import VarConfig
    from .model import VarTransformer

PUBLISHED = Defaults(cfg=1.5, top_k=900, top_p=0.96)  # of the published evaluation


class VarExporter(GeneratorExporter):
    """Exports a VAR and its tokenizer."""

    def check_shape(self, name: str, form: ExportShape) -> None:
        """It has every form."""

    def write_graphs(self, job: ExportJob, folder: Path) -> dict[str, int]:
        """All that the export leaves; returns the parameters of each half."""
        from ..var_vqvae.write import export_var_tokenizer
        from .config import read_config_json
        from .write import export_var

        model, vae = load_models(job)
        sampling = read_config_json(job.paths[0].parent).sampling
        return write_parts(
            job,
            folder,
            (model, vae),
            describe(model.config, vae, job.form, sampling),
            lambda weights, properties: (
                *export_var_tokenizer(vae, weights, properties, model.word_embed, job.form),
                *export_var(model, weights, properties, job.form),
            ),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> dict[str, Any]:
        """Both halves of the model, each let go before its graphs are opened; for the manifest.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """
        import torch

        from ..var_vqvae.parity import check_tokenizer_parity, compute_tokenizer_references
        from .parity import check_var_parity, compute_references, resize

        model, vae = load_models(job)
        pictures = job.pictures(vae.config.image_size)
        tokenizer = compute_tokenizer_references(vae, model.word_embed, pictures)
        images = job.form.static_batch or 1
        shown = torch.from_numpy(resize(tokenizer.features, images)).repeat(2, 1, 1)
        labels = guided_labels(model.config.num_classes, images)
        references = compute_references(model, labels, shown, job.form)
        del model, vae
        gc.collect()
        tokens, differences = check_tokenizer_parity(folder, tokenizer, job.form)
        return parity_results(tokens, (*differences, *check_var_parity(folder, references)))


def load_models(job: ExportJob) -> tuple[VarTransformer, VarVqvae]:
    """As `load_parts`: of one size and one codebook."""
    from ..var_vqvae.model import load_var_vqvae
    from .checkpoint import INFINITE, load_var
    from .config import read_config_json
    from .variants import VAE

    config_json = read_config_json(job.paths[0].parent)
    return load_parts(
        job,
        f"{VAE}.pth",
        lambda tensors: load_var(tensors, job.spec, config_json),
        lambda tensors, model: load_var_vqvae(tensors, job.spec, model.config.patch_nums),
        ("vocab_size", "latent_channels"),
        INFINITE,
    )


def describe(
    config: VarConfig,
    vae: VarVqvae,
    form: ExportShape = DYNAMIC,
    sampling: Defaults | None = None,
) -> VarSpec:
    """What the runtime needs to know of the generator; `sampling` instead of the published one."""
    sampling = sampling or PUBLISHED
    return VarSpec(
        patch_nums=config.patch_nums,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        latent_channels=config.latent_channels,
        latent_size=vae.config.latent_size,
        image_size=vae.config.image_size,
        defaults=replace(sampling, top_k=min(sampling.top_k, config.vocab_size)),
        static_batch=form.static_batch,
        kv_type=form.kv_type,
    )
