"""Export VAR's VQVAE alone: its decoder takes the codes of all scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...errors import ExportError
from ...workspace.facts import TokenizerFacts
from ..shared.job import ExportJob
from ..shared.tokenizer_export import TokenizerExporter
from .config import PATCH_NUMS_256

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ..shared.torch_graphs import TorchGraph
    from .model import VarVqvae
    from .parity import CodeReferences


class VqvaeJson(msgspec.Struct, frozen=True, kw_only=True):
    """Read the key of a `config.json` beside the weights that no tensor tells."""

    patch_nums: tuple[int, ...] | None = None


class VarVqvaeExporter(TokenizerExporter["VarVqvae"]):
    """Exports VAR's VQVAE."""

    part = "a VAR VQVAE"

    def load(self, job: ExportJob, tensors: dict[str, Tensor]) -> VarVqvae:
        """Load it from its tensors, strictly.

        Raises:
            ExportError: they are another tokenizer's, or of other scales than the published ones
                without a config.json that says which.
        """
        from ...export.checkpoint.config_json import read_beside
        from .model import HITS, load_var_vqvae

        given = read_beside(job.paths[0].parent, VqvaeJson).patch_nums
        hits = tensors.get(HITS)
        if given is None and hits is not None and len(hits) != len(PATCH_NUMS_256):
            raise ExportError(
                f"has {len(hits)} scales, and nothing says their sides",
                where=job.spec,
                do='put a config.json with "patch_nums" beside it',
            )
        return load_var_vqvae(tensors, job.spec, given or PATCH_NUMS_256)

    def facts(self, model: VarVqvae) -> TokenizerFacts:
        """Return sizes, the codebook's and how many codes an image has."""
        config = model.config
        return TokenizerFacts(
            stride=config.stride,
            discrete=True,
            latent_channels=config.latent_channels,
            codebook_size=config.vocab_size,
            fixed_size=config.image_size,
            tokens=sum(config.lengths),
        )

    def write(
        self, model: VarVqvae, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write both graphs, for images of the one size that the scales are of."""
        from .write import export_var_vqvae

        return export_var_vqvae(model, weights, properties)

    def torch_halves(self, model: VarVqvae) -> dict[str, TorchGraph]:
        """Return the encoder, and the decoder of the codes of all scales."""
        from ..shared.torch_graphs import TorchGraph
        from .graphs import VarEncoderGraph, VarTokensGraph

        return {
            "encoder": TorchGraph(VarEncoderGraph(model), ("image",), ("indices", "latent")),
            "decoder": TorchGraph(VarTokensGraph(model), ("indices",), ("image",)),
        }

    def references(self, job: ExportJob, model: VarVqvae) -> CodeReferences:
        """Compute latents, codes and images."""
        from .parity import compute_code_references

        return compute_code_references(model, job.pictures(model.config.image_size))
