"""Export a KL autoencoder alone: its latent is the mean of the posterior, without a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...workspace.facts import TokenizerFacts
from ..shared.job import ExportJob, parity_side
from ..shared.tokenizer_export import TokenizerExporter

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ..shared.torch_graphs import TorchGraph
    from .model import KlVae
    from .parity import AutoencoderReferences


class KlVaeExporter(TokenizerExporter["KlVae"]):
    """Exports a KL autoencoder."""

    part = "a KL autoencoder"

    def load(self, job: ExportJob, tensors: dict[str, Tensor]) -> KlVae:
        """Load it from its tensors, strictly."""
        from .model import load_kl_vae

        return load_kl_vae(tensors, job.spec)

    def facts(self, model: KlVae) -> TokenizerFacts:
        """Return the stride and the channels of the latent."""
        config = model.config
        return TokenizerFacts(
            stride=config.stride, discrete=False, latent_channels=config.latent_channels
        )

    def write(
        self, model: KlVae, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write both graphs, for images of any size in strides."""
        from .write import export_kl_vae

        return export_kl_vae(model, weights, properties, 1.0)

    def torch_halves(self, model: KlVae) -> dict[str, TorchGraph]:
        """Return both halves, of a latent without a scale."""
        from .write import torch_halves

        return torch_halves(model, 1.0)

    def references(self, job: ExportJob, model: KlVae) -> AutoencoderReferences:
        """Compute latents and images."""
        from .parity import compute_autoencoder_references

        return compute_autoencoder_references(model, job.pictures(parity_side(model.config.stride)))
