"""Export a Cosmos tokenizer and compare its graphs with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.facts import CheckpointFacts, Parity
from ...graph.sites import SiteMap
from ...workspace.files import encode_json
from ..base import Exporter
from ..shared.job import PARITY_SIZE, ExportJob, mark_norms

if TYPE_CHECKING:
    from torch import Tensor

    from ..shared.torch_graphs import TorchGraph
    from .model import CosmosTokenizer


class CosmosExporter(Exporter):
    """Exports a Cosmos tokenizer."""

    part = "a Cosmos tokenizer"

    def export(self, job: ExportJob, folder: Path) -> CheckpointFacts:
        """Write a Cosmos tokenizer's two graphs; returns the manifest's results."""
        from ..shared.vq_parity import check_vq_parity
        from .parity import compute_cosmos_references
        from .write import export_tokenizer, tokenizer_facts

        job.reading()
        model = load_model(job)
        job.exporting()
        mark_norms(job, model, PARITY_SIZE)
        sites = export_tokenizer(model, folder, job.entry.name)
        (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
        job.comparing()
        references = compute_cosmos_references(model, job.pictures(PARITY_SIZE))
        tokens, differences = check_vq_parity(folder, references)
        job.comparing(done=True)
        return CheckpointFacts(
            parameters=sum(p.numel() for p in model.parameters()),
            tokenizer=tokenizer_facts(model.config),
            parity=Parity(encoder=tokens, graphs=differences),
            parity_images=job.image_names,
        )

    def check(self, job: ExportJob) -> None:
        """Load it."""
        load_model(job)

    def load_part(self, job: ExportJob, tensors: dict[str, Tensor]) -> Any:
        """Return the configuration of the tensors' model."""
        return fit_model(job, tensors).config

    def torch_graphs(self, job: ExportJob) -> dict[str, TorchGraph]:
        """Return both halves; the decoder takes what the encoder gives first."""
        from ..shared.torch_graphs import TorchGraph
        from .write import DecoderGraph, EncoderGraph

        model = load_model(job)
        outputs = ("indices", "latent") if model.config.discrete else ("latent",)
        return {
            "encoder": TorchGraph(EncoderGraph(model), ("image",), outputs),
            "decoder": TorchGraph(DecoderGraph(model), outputs[:1], ("image",)),
        }


def load_model(job: ExportJob) -> CosmosTokenizer:
    """Return the checkpoint's model.

    Raises:
        ExportError: it does not fit.
    """
    from ..shared.recognize import refused_by_content
    from ..variants import check_config

    with refused_by_content(job, CosmosExporter.part):
        model = fit_model(job, job.read())
    check_config(job.entry, model.config, job.spec)
    return model


def fit_model(job: ExportJob, tensors: dict[str, Tensor]) -> CosmosTokenizer:
    """Return the model of a checkpoint's tensors.

    Raises:
        ExportError: they do not fit.
    """
    from ...export.checkpoint.config_json import read_beside
    from .checkpoint import load_cosmos
    from .config import CosmosConfig, CosmosJson

    known = job.entry.config if isinstance(job.entry.config, CosmosConfig) else None
    config_json = read_beside(job.paths[0].parent, CosmosJson)
    return load_cosmos(tensors, job.spec, config_json, known)
