"""Export a transformer and its tokenizer in two stages, over a few hooks of a family."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypedDict, cast

import numpy as np

from ...export.facts import Parity
from ...export.shape import ExportShape
from .isolated_export import GeneratorExporter
from .job import (
    ExportJob,
    Tokenizer,
    Transformer,
    guided_labels,
    load_parts,
    refuse_static,
    write_parts,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ...export.facts import Difference, PartParameters
    from ...export.weight_file import WeightFile
    from ...graph.sites import Site
    from ...runtime.spec import GeneratorSpec, KvType
    from .torch_graphs import TorchGraph
    from .vq import VqTokenizer

Compare = Callable[[Path], Parity]


class TransformerExporter(GeneratorExporter, Generic[Transformer, Tokenizer]):
    """Exports a transformer and the tokenizer that it was trained with."""

    @abstractmethod
    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> Transformer:
        """Load the transformer from its tensors, strictly."""

    @abstractmethod
    def load_pair(self, job: ExportJob) -> tuple[Transformer, Tokenizer]:
        """Load both from the job's checkpoint.

        Raises:
            ExportError: one is missing, is another variant's, or they do not belong together.
        """

    def load(self, job: ExportJob) -> tuple[Transformer, Tokenizer]:
        """Load both; an error says which other model the checkpoint is of, if it is of one.

        Raises:
            ExportError: as `load_pair`.
        """
        from .recognize import refused_by_content

        with refused_by_content(job, self.part):
            return self.load_pair(job)

    def check(self, job: ExportJob) -> None:
        """Load both."""
        self.load(job)

    def load_part(self, job: ExportJob, tensors: dict[str, Tensor]) -> Any:
        """Return the transformer's configuration."""
        from ...export.checkpoint.strict import split_parts

        return self.load_transformer(job, split_parts(tensors)[0]).config

    @abstractmethod
    def spec(self, job: ExportJob, model: Transformer, tokenizer: Tokenizer) -> GeneratorSpec:
        """Return what the runtime needs to know of the generator."""

    @abstractmethod
    def write(
        self,
        job: ExportJob,
        model: Transformer,
        tokenizer: Tokenizer,
        weights: WeightFile,
        properties: dict[str, str],
    ) -> tuple[Site, ...]:
        """Write all graphs through `weights`; returns their sites."""

    @abstractmethod
    def references(self, job: ExportJob, model: Transformer, tokenizer: Tokenizer) -> Compare:
        """Compute in PyTorch what the graphs should; returns what compares those of a folder.

        That must keep neither model: both are let go before the graphs are opened. It raises
        ExportError for a difference above the tolerance.
        """

    def write_graphs(self, job: ExportJob, folder: Path) -> PartParameters:
        """Write all that the export leaves; returns the parameters of each half."""
        model, tokenizer = self.load(job)
        return write_parts(
            job,
            folder,
            (model, tokenizer),
            self.spec(job, model, tokenizer),
            lambda weights, properties: self.write(job, model, tokenizer, weights, properties),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> Parity:
        """Compare all graphs with PyTorch.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """
        job.comparing("reading the checkpoint")
        models = self.load(job)
        job.comparing("running PyTorch")
        compare = self.references(job, *models)
        del models
        gc.collect()
        job.comparing("running the graphs")
        return compare(folder)


class TokenMapExporter(TransformerExporter[Transformer, Tokenizer]):
    """Exports a transformer over one map of tokens, and its tokenizer of one codebook.

    Attributes:
        tokenizer_file: the official name of the tokenizer's file.
        growth: what the cache grows by in a step, in words.
        ignored: tensors whose names begin so are left out.
    """

    tokenizer_file: ClassVar[str]
    growth: ClassVar[str]
    ignored: ClassVar[str | None] = None

    @abstractmethod
    def load_tokenizer(self, job: ExportJob, tensors: dict[str, Tensor]) -> Tokenizer:
        """Load the tokenizer from its tensors, strictly."""

    @abstractmethod
    def write_transformer(
        self, job: ExportJob, model: Transformer, weights: WeightFile, properties: dict[str, str]
    ) -> tuple[Site, ...]:
        """Write the transformer's graphs through `weights`; returns their sites."""

    @abstractmethod
    def step_references(
        self, job: ExportJob, model: Transformer, labels: Tensor, tokens: Tensor
    ) -> Callable[[Path], tuple[Difference, ...]]:
        """Compute what the transformer's graphs should, as `references`.

        labels int64 [rows]; tokens int64 [rows, length], a photograph's in the order of generation.
        """

    def usual_side(self, model: Transformer) -> int | None:
        """Return the side of the map at which sums of the tokenizer must keep their digits."""
        return None

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raises ExportError for fixed shapes: a graph a step would be too many."""
        refuse_static(name, form, self.growth)

    def load_pair(self, job: ExportJob) -> tuple[Transformer, Tokenizer]:
        """Load both, of one codebook."""
        return load_parts(
            job,
            self.tokenizer_file,
            lambda tensors: self.load_transformer(job, tensors),
            lambda tensors, _: self.load_tokenizer(job, tensors),
            ("vocab_size",),
            ignored=self.ignored,
        )

    def write(
        self,
        job: ExportJob,
        model: Transformer,
        tokenizer: Any,
        weights: WeightFile,
        properties: dict[str, str],
    ) -> tuple[Site, ...]:
        """Write encoder and decoder, then the transformer's graphs."""
        from .vq_export import export_vq

        return (
            *export_vq(tokenizer, weights, properties, side=self.usual_side(model)),
            *self.write_transformer(job, model, weights, properties),
        )

    @abstractmethod
    def teacher_forced(self, model: Transformer) -> Module:
        """Return the module of all positions: labels and tokens to logits."""

    def torch_graphs(self, job: ExportJob) -> Mapping[str, TorchGraph]:
        """Return the tokenizer's halves, and the transformer on all positions at once."""
        from .torch_graphs import TorchGraph, vq_torch_graphs

        model, tokenizer = self.load(job)
        whole = TorchGraph(self.teacher_forced(model), ("labels", "tokens"), ("logits",))
        # What the loader returns is of the class that its family names.
        return {**vq_torch_graphs(cast("VqTokenizer", tokenizer)), "full": whole}

    def references(self, job: ExportJob, model: Transformer, tokenizer: Any) -> Compare:
        """Compute those of the tokenizer on photographs, and of the transformer on one's tokens."""
        import torch

        from .vq_parity import check_vq_parity, compute_vq_references

        spec = self.spec(job, model, tokenizer)
        photographs = compute_vq_references(tokenizer, job.pictures(spec.image_size))
        tokens = np.tile(photographs.indices[0].reshape(-1)[spec.order], (2, 1))
        labels = guided_labels(spec.num_classes)
        check = self.step_references(job, model, labels, torch.from_numpy(tokens))

        def compare(folder: Path) -> Parity:
            tokens, differences = check_vq_parity(folder, photographs)
            return Parity(encoder=tokens, graphs=(*differences, *check(folder)))

        return compare


class MapConfig(Protocol):
    """The configuration of a transformer over a map of tokens."""

    @property
    def side(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class RasterFields(TypedDict):
    """The fields of a `RasterSpec` that a configuration and the shape of the export decide."""

    side: int
    num_classes: int
    vocab_size: int
    depth: int
    width: int
    heads: int
    head_dim: int
    image_size: int
    kv_type: KvType


def raster_fields(config: MapConfig, stride: int, form: ExportShape) -> RasterFields:
    """Return the fields of a `RasterSpec`; a token is `stride` pixels wide."""
    return RasterFields(
        side=config.side,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        image_size=config.side * stride,
        kv_type=form.kv_type,
    )
