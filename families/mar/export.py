"""What the export of a MAR writes, of transformers and autoencoder, and how it is compared."""

from __future__ import annotations

import gc
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ExportError
from ...export.shape import DYNAMIC, ExportShape
from ..shared.isolated_export import GeneratorExporter
from ..shared.job import ExportJob, guided_labels, load_parts, write_parts
from .spec import MarDefaults, MarSpec

if TYPE_CHECKING:
    from ..kl_vae.model import KlVae
    from .config import MarConfig, MarJson
    from .model import MarTransformer

# What a trainer of autoencoders leaves beside them.
LOSS = "loss."


class MarExporter(GeneratorExporter):
    """Exports a MAR and its tokenizer."""

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raises ExportError for any but the usual form."""
        if form != DYNAMIC:
            raise ExportError(
                "sees one more set of tokens in each pass: it has no fixed shapes and no KV caches",
                where=name,
                do="leave out --static-batch and --kv-type",
            )

    def write_graphs(self, job: ExportJob, folder: Path) -> dict[str, int]:
        """All that the export leaves; returns the parameters of each half."""
        from ..kl_vae.write import export_kl_vae
        from .write import export_mar

        model, vae = load_models(job)
        scale = model.config.latent_scale
        return write_parts(
            job,
            folder,
            (model, vae),
            describe(model.config, vae.config.stride, read_config_json(job).sampling),
            lambda weights, properties: (
                *export_kl_vae(vae, weights, properties, scale),
                *export_mar(model, weights, properties),
            ),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> dict[str, Any]:
        """Both halves of the model, each let go before its graphs are opened; for the manifest.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """
        import torch

        from .parity import (
            check_autoencoder_parity,
            check_mar_parity,
            compute_autoencoder_references,
            compute_mar_references,
        )

        model, vae = load_models(job)
        config = model.config
        images = job.pictures(config.side * vae.config.stride)
        autoencoder = compute_autoencoder_references(vae, images, config.latent_scale)
        shown = torch.from_numpy(autoencoder.latent[:1]).flatten(2).transpose(1, 2)
        labels = guided_labels(config.num_classes)
        references = compute_mar_references(model, labels, shown.repeat(2, 1, 1))
        del model, vae
        gc.collect()
        found = (
            *check_autoencoder_parity(folder, autoencoder),
            *check_mar_parity(folder, references),
        )
        return {"graphs": [asdict(one) for one in found]}


def load_models(job: ExportJob) -> tuple[MarTransformer, KlVae]:
    """As `load_parts`: of one latent."""
    from ..kl_vae.model import load_kl_vae
    from .checkpoint import load_mar
    from .variants import VAE

    return load_parts(
        job,
        f"{VAE}.ckpt",
        lambda tensors: load_mar(tensors, job.spec, read_config_json(job)),
        lambda tensors, model: one_latent_a_token(
            load_kl_vae(tensors, job.spec), model.config.latent_channels, job.spec
        ),
        ("latent_channels",),
        ignored=LOSS,
    )


def one_latent_a_token(vae: KlVae, channels: int, where: str) -> KlVae:
    """Raises ExportError for tokens that are patches of several latents."""
    latent = vae.config.latent_channels
    patch = math.isqrt(channels // latent)
    if patch > 1 and channels == latent * patch**2:
        raise ExportError(
            f"has tokens of {channels} numbers, patches of {patch}x{patch} latents of {latent} "
            f"channels (patch_size {patch}), which are not supported",
            where=where,
            do="use a MAR of patch_size 1",
        )
    return vae


def read_config_json(job: ExportJob) -> MarJson:
    """What the `config.json` beside the weights says."""
    from ...export.checkpoint.config_json import read_beside
    from .config import MarJson

    return read_beside(job.paths[0].parent, MarJson)


def describe(config: MarConfig, stride: int, sampling: MarDefaults | None = None) -> MarSpec:
    """What the runtime needs to know of the generator.

    Raises:
        ExportError: `sampling` says more passes than an image has tokens.
    """
    from .config import sampling_of

    defaults = sampling or sampling_of(config)
    if defaults.iterations > config.length:
        raise ExportError(
            f"its sampling has {defaults.iterations} iterations over {config.length} tokens",
            where="config.json",
            do="correct it",
        )
    return MarSpec(
        side=config.side,
        latent_channels=config.latent_channels,
        num_classes=config.num_classes,
        image_size=config.side * stride,
        defaults=defaults,
    )
