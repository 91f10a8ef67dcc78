"""Export a VAR with its VQVAE and compare the graphs with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ...export.facts import Parity
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.spec import Defaults
from ..shared.exporter import Compare, TransformerExporter
from ..shared.job import ExportJob, guided_labels, load_parts
from ..var_vqvae.variants import NAME as VAE
from .config import VarConfig, read_config_json
from .spec import VarSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ..shared.torch_graphs import TorchGraph
    from ..var_vqvae.model import VarVqvae
    from .model import VarTransformer

PUBLISHED = Defaults(cfg=1.5, top_k=900, top_p=0.96)  # of the published evaluation


class VarExporter(TransformerExporter["VarTransformer", "VarVqvae"]):
    """Exports a VAR and its tokenizer."""

    part = "a VAR transformer"

    def check_shape(self, name: str, form: ExportShape) -> None:
        """It has every form."""

    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> VarTransformer:
        """Load the transformer."""
        from .checkpoint import load_var

        return load_var(tensors, job.spec, read_config_json(job.paths[0].parent))

    def load_pair(self, job: ExportJob) -> tuple[VarTransformer, VarVqvae]:
        """Load both, of one size and one codebook."""
        from ..var_vqvae.model import load_var_vqvae
        from .checkpoint import INFINITE

        return load_parts(
            job,
            f"{VAE}.pth",
            lambda tensors: self.load_transformer(job, tensors),
            lambda tensors, model: load_var_vqvae(tensors, job.spec, model.config.patch_nums),
            ("vocab_size", "latent_channels"),
            INFINITE,
        )

    def spec(self, job: ExportJob, model: VarTransformer, tokenizer: VarVqvae) -> VarSpec:
        """Return what the runtime needs to know of the generator."""
        sampling = read_config_json(job.paths[0].parent).sampling
        return generator_spec(model.config, tokenizer, job.form, sampling)

    def write(
        self,
        job: ExportJob,
        model: VarTransformer,
        tokenizer: VarVqvae,
        weights: WeightFile,
        properties: dict[str, str],
    ) -> tuple[Site, ...]:
        """Write the tokenizer's graphs, then the transformer's."""
        from ..var_vqvae.write import export_var_tokenizer
        from .write import export_var

        return (
            *export_var_tokenizer(tokenizer, weights, properties, model.word_embed, job.form),
            *export_var(model, weights, properties, job.form),
        )

    def torch_graphs(self, job: ExportJob) -> dict[str, TorchGraph]:
        """Return the tokenizer's halves, and the transformer on all positions at once."""
        from ..shared.torch_graphs import TorchGraph
        from ..var_vqvae.graphs import VarDecoderGraph, VarEncoderGraph
        from .graphs import TeacherForcedGraph

        model, vae = self.load(job)
        return {
            "encoder": TorchGraph(VarEncoderGraph(vae), ("image",), ("indices", "latent")),
            "decoder": TorchGraph(VarDecoderGraph(vae), ("latent",), ("image",)),
            "full": TorchGraph(TeacherForcedGraph(model), ("labels", "features"), ("logits",)),
        }

    def references(self, job: ExportJob, model: VarTransformer, tokenizer: VarVqvae) -> Compare:
        """Compute those of the tokenizer on photographs, and of the transformer on one of them."""
        import torch

        from ..var_vqvae.parity import (
            check_tokenizer_parity,
            compute_tokenizer_references,
            repeated_rows,
        )
        from .parity import check_var_parity, compute_references

        pictures = job.pictures(tokenizer.config.image_size)
        photographs = compute_tokenizer_references(tokenizer, model.word_embed, pictures)
        images = job.form.static_batch or 1
        shown = torch.from_numpy(repeated_rows(photographs.features, images)).repeat(2, 1, 1)
        labels = guided_labels(model.config.num_classes, images)
        wanted = compute_references(model, labels, shown, job.form)

        def compare(folder: Path) -> Parity:
            tokens, differences = check_tokenizer_parity(folder, photographs, job.form)
            graphs = (*differences, *check_var_parity(folder, wanted))
            return Parity(encoder=tokens, graphs=graphs)

        return compare


def generator_spec(
    config: VarConfig,
    vae: VarVqvae,
    form: ExportShape = DYNAMIC,
    sampling: Defaults | None = None,
) -> VarSpec:
    """Return what the runtime needs to know; `sampling` instead of the published one."""
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
