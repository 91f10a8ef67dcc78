"""Export the tokenizer of a generator alone, over a few hooks of its family."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from ...export.facts import CheckpointFacts, Parity
from ...graph.sites import SiteMap
from ...workspace.facts import TokenizerFacts
from ...workspace.files import encode_json
from ..base import Exporter
from .job import ExportJob, Tokenizer, mark_norms, parity_side

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from .torch_graphs import TorchGraph
    from .vq import VqTokenizer
    from .vq_parity import References


class TokenizerExporter(Exporter, Generic[Tokenizer]):
    """Exports an encoder and a decoder from the file of a tokenizer.

    A checkpoint that also holds a transformer, as a generator's folder or a trainer's snapshot
    does, is taken for its tokenizer.
    """

    @abstractmethod
    def load(self, job: ExportJob, tensors: dict[str, Tensor]) -> Tokenizer:
        """Load the tokenizer from its tensors, strictly.

        Raises:
            ExportError: they are another tokenizer's.
        """

    @abstractmethod
    def facts(self, model: Tokenizer) -> TokenizerFacts:
        """Return what later stages need to know of the tokenizer."""

    @abstractmethod
    def write(
        self, model: Tokenizer, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write encoder.onnx and decoder.onnx through `weights`; returns their sites."""

    @abstractmethod
    def references(self, job: ExportJob, model: Tokenizer) -> References:
        """Compute in PyTorch what both graphs should give of the job's images."""

    @abstractmethod
    def torch_halves(self, model: Tokenizer) -> Mapping[str, TorchGraph]:
        """Return both halves in PyTorch, by the names of their graphs."""

    def torch_graphs(self, job: ExportJob) -> Mapping[str, TorchGraph]:
        """Load the tokenizer; returns both of its halves."""
        return self.torch_halves(self.load_checked(job))

    def load_checked(self, job: ExportJob) -> Tokenizer:
        """Load the tokenizer; an error says which other model the checkpoint is of, if it is.

        Raises:
            ExportError: as `load`.
        """
        from ...export.checkpoint.strict import split_parts
        from .recognize import refused_by_content

        with refused_by_content(job, self.part):
            return self.load(job, split_parts(job.read())[1])

    def check(self, job: ExportJob) -> None:
        """Load the tokenizer."""
        self.load_checked(job)

    def load_part(self, job: ExportJob, tensors: dict[str, Tensor]) -> Any:
        """Return the tokenizer's configuration."""
        from ...export.checkpoint.strict import split_parts

        return self.load(job, split_parts(tensors)[1]).config

    def export(self, job: ExportJob, folder: Path) -> CheckpointFacts:
        """Write both graphs and their sites; returns the manifest's results.

        Raises:
            ExportError: the checkpoint does not fit, or a difference above the tolerance.
        """
        from ...export.weight_file import WeightFile
        from .vq_parity import check_vq_parity

        job.reading()
        model = self.load_checked(job)
        facts = self.facts(model)
        parameters = sum(p.numel() for p in model.parameters())
        job.exporting()
        mark_norms(job, model, image_side(facts))
        properties = {"arvg_trt.model": job.entry.name, "arvg_trt.family": job.entry.family}
        with WeightFile(folder, job.exporting) as weights:
            sites = self.write(model, weights, properties)
        (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
        job.comparing()
        references = self.references(job, model)
        del model
        gc.collect()
        tokens, differences = check_vq_parity(folder, references)
        job.comparing(done=True)
        return CheckpointFacts(
            parameters=parameters,
            tokenizer=facts,
            parity=Parity(encoder=tokens if facts.discrete else None, graphs=differences),
            parity_images=job.image_names,
        )


def image_side(facts: TokenizerFacts) -> int:
    """Return the side of the images that graphs are compared on."""
    return parity_side(facts.stride) if facts.image_size is None else facts.image_size


class MapTokenizerExporter(TokenizerExporter["VqTokenizer"]):
    """Exports a tokenizer of one map of codes, each the nearest of a codebook."""

    def facts(self, model: VqTokenizer) -> TokenizerFacts:
        """Return the stride, the channels and the codebook's size."""
        config = model.config
        return TokenizerFacts(
            stride=config.stride,
            discrete=True,
            latent_channels=config.latent_channels,
            codebook_size=config.vocab_size,
        )

    def write(
        self, model: VqTokenizer, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write both graphs, for images of any size in strides."""
        from .vq_export import export_vq

        stride = model.config.stride
        return export_vq(model, weights, properties, side=parity_side(stride) // stride)

    def torch_halves(self, model: VqTokenizer) -> Mapping[str, TorchGraph]:
        """Return encoder and decoder of one map of codes."""
        from .torch_graphs import vq_torch_graphs

        return vq_torch_graphs(model)

    def references(self, job: ExportJob, model: VqTokenizer) -> References:
        """Compute latents, codes and images."""
        from .vq_parity import compute_vq_references

        return compute_vq_references(model, job.pictures(parity_side(model.config.stride)))
