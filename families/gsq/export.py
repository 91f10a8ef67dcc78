"""Export a GSQ tokenizer and compare its graphs with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ...export.facts import CheckpointFacts, Parity
from ...graph.sites import SiteMap
from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from ...workspace.facts import TokenizerFacts
from ...workspace.files import encode_json
from ..base import Exporter
from ..shared.job import PARITY_SIZE, ExportJob

if TYPE_CHECKING:
    from torch import Tensor

    from ..shared.torch_graphs import TorchGraph
    from .config import GsqConfig
    from .model import GsqTokenizer

LEAST_POSITIONS = 2  # whose variance the decoder's norms take


class GsqExporter(Exporter):
    """Exports a GSQ tokenizer."""

    part = "a GSQ tokenizer"

    def export(self, job: ExportJob, folder: Path) -> CheckpointFacts:
        """Write both graphs and their sites; returns the manifest's results.

        Raises:
            ExportError: the checkpoint does not fit, or a difference above the tolerance.
        """
        from ...export.weight_file import WeightFile
        from ..shared.vq_export import export_vq
        from ..shared.vq_parity import check_vq_parity
        from .graphs import gsq_graphs
        from .parity import compute_gsq_references

        job.reading()
        model = load_model(job)
        job.exporting()
        properties = {
            "arvg_trt.model": job.entry.name,
            "arvg_trt.family": "gsq",
            "arvg_trt.groups": str(model.config.groups),
            "arvg_trt.least_positions": str(LEAST_POSITIONS),
        }
        with WeightFile(folder, job.exporting) as weights:
            sites = export_vq(model, weights, properties, gsq_graphs(model))
        (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
        job.comparing()
        references = compute_gsq_references(model, job.pictures(PARITY_SIZE))
        tokens, differences = check_vq_parity(folder, references, precise_norms)
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
        """Return both halves."""
        from ..shared.torch_graphs import vq_torch_graphs
        from .graphs import gsq_graphs

        model = load_model(job)
        return vq_torch_graphs(model, gsq_graphs(model))


def load_model(job: ExportJob) -> GsqTokenizer:
    """The checkpoint's model, of the normalization that its files or its name tells.

    Raises:
        ExportError: it does not fit, or what tells the normalization disagrees or is missing.
    """
    from ..shared.recognize import refused_by_content
    from ..variants import check_config

    with refused_by_content(job, GsqExporter.part):
        model = fit_model(job, job.read())
    check_config(job.entry, model.config, job.spec)
    return model


def fit_model(job: ExportJob, tensors: dict[str, Tensor]) -> GsqTokenizer:
    """Return the model of a checkpoint's tensors.

    Raises:
        ExportError: they do not fit, or what tells the normalization disagrees or is missing.
    """
    from .model import load_gsq
    from .variants import VARIANTS
    from .yaml import read_normalization

    normalization = read_normalization(job.paths[0].parent)
    if normalization is None:
        known = [job.entry, *(entry for entry in VARIANTS if entry.hub == job.spec)]
        normalization = next((e.config.normalization for e in known if is_gsq(e.config)), None)
    return load_gsq(tensors, job.spec, normalization)


def is_gsq(config: object) -> TypeGuard[GsqConfig]:
    from .config import GsqConfig

    return isinstance(config, GsqConfig)


def precise_norms(path: Path) -> Session:
    """A graph whose group norms are in the form that ONNX Runtime has a kernel for.

    It runs GroupNormalization as a difference of two means of squares. Where an adaptive norm has
    left a group nearly constant, as its scale near 0 does, that costs three digits.
    """
    import onnx_ir as ir

    from ...graph.group_norm import ExpandGroupNormsPass

    model = ir.load(path)
    ExpandGroupNormsPass()(model)
    graph = ir.to_proto(model).SerializeToString()
    return open_session(path, optimized=True, graph=graph)


def tokenizer_facts(config: GsqConfig) -> TokenizerFacts:
    """Return what later stages need to know of the tokenizer."""
    return TokenizerFacts(
        stride=config.stride,
        discrete=True,
        groups=config.groups,
        latent_channels=config.latent_channels,
        codebook_size=config.vocab_size,
    )
