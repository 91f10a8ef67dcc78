"""Export a MAR, transformers and autoencoder, and compare the graphs with PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ExportError
from ...export.facts import Parity
from ...export.shape import DYNAMIC, ExportShape
from ..kl_vae.variants import NAME as VAE
from ..shared.exporter import Compare, TransformerExporter
from ..shared.job import ExportJob, guided_labels, load_parts
from .config import MarConfig, MarJson, sampling_of
from .spec import MarDefaults, MarSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ..kl_vae.model import KlVae
    from ..shared.torch_graphs import TorchGraph
    from .model import MarTransformer

# What a trainer of autoencoders leaves beside them.
LOSS = "loss."


class MarExporter(TransformerExporter["MarTransformer", "KlVae"]):
    """Exports a MAR and its tokenizer."""

    part = "a MAR transformer"

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raises ExportError for any but the usual form."""
        if form != DYNAMIC:
            raise ExportError(
                "sees one more set of tokens in each pass: it has no fixed shapes and no KV caches",
                where=name,
                do="leave out --static-batch and --kv-type",
            )

    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> MarTransformer:
        """Load the encoder, the decoder and the denoiser."""
        from .checkpoint import load_mar

        return load_mar(tensors, job.spec, read_config_json(job))

    def load_pair(self, job: ExportJob) -> tuple[MarTransformer, KlVae]:
        """Load both, of one latent."""
        from ..kl_vae.model import load_kl_vae

        return load_parts(
            job,
            f"{VAE}.ckpt",
            lambda tensors: self.load_transformer(job, tensors),
            lambda tensors, model: one_latent_a_token(
                load_kl_vae(tensors, job.spec), model.config.latent_channels, job.spec
            ),
            ("latent_channels",),
            ignored=LOSS,
        )

    def spec(self, job: ExportJob, model: MarTransformer, tokenizer: KlVae) -> MarSpec:
        """Return what the runtime needs to know of the generator."""
        return generator_spec(model.config, tokenizer.config.stride, read_config_json(job).sampling)

    def write(
        self,
        job: ExportJob,
        model: MarTransformer,
        tokenizer: KlVae,
        weights: WeightFile,
        properties: dict[str, str],
    ) -> tuple[Site, ...]:
        """Write the autoencoder's graphs, then the transformers'."""
        from ..kl_vae.write import export_kl_vae
        from .write import export_mar

        return (
            *export_kl_vae(tokenizer, weights, properties, model.config.latent_scale),
            *export_mar(model, weights, properties),
        )

    def torch_graphs(self, job: ExportJob) -> dict[str, TorchGraph]:
        """Return the autoencoder's halves, a pass of the transformers, and the denoiser."""
        from ..kl_vae.write import torch_halves
        from ..shared.torch_graphs import TorchGraph
        from .graphs import DenoiseGraph, PassGraph

        model, vae = self.load(job)
        known = ("labels", "tokens", "position_ids")
        noisy = ("x", "time", "condition")
        return {
            **torch_halves(vae, model.config.latent_scale),
            "pass": TorchGraph(PassGraph(model), known, ("z", "condition")),
            "denoise": TorchGraph(DenoiseGraph(model), noisy, ("noise", "spread")),
        }

    def references(self, job: ExportJob, model: MarTransformer, tokenizer: KlVae) -> Compare:
        """Compute those of the autoencoder on photographs, and of the transformers on one."""
        import torch

        from ..kl_vae.parity import compute_autoencoder_references
        from .parity import check_autoencoder_parity, check_mar_parity, compute_mar_references

        config = model.config
        images = job.pictures(config.side * tokenizer.config.stride)
        autoencoder = compute_autoencoder_references(tokenizer, images, config.latent_scale)
        shown = torch.from_numpy(autoencoder.latent[:1]).flatten(2).transpose(1, 2)
        labels = guided_labels(config.num_classes)
        wanted = compute_mar_references(model, labels, shown.repeat(2, 1, 1))

        def compare(folder: Path) -> Parity:
            found = check_autoencoder_parity(folder, autoencoder)
            return Parity(graphs=(*found, *check_mar_parity(folder, wanted)))

        return compare


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
    """Read the `config.json` beside the weights."""
    from ...export.checkpoint.config_json import read_beside

    return read_beside(job.paths[0].parent, MarJson)


def generator_spec(config: MarConfig, stride: int, sampling: MarDefaults | None = None) -> MarSpec:
    """Return what the runtime needs to know of the generator.

    Raises:
        ExportError: `sampling` says more passes than an image has tokens.
    """
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
