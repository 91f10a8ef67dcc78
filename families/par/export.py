"""Export a PAR with its LlamaGen VQ and compare the graphs with PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...export.shape import DYNAMIC, ExportShape
from ...runtime.spec import Defaults
from ..shared.exporter import raster_fields
from ..shared.job import ExportJob
from ..shared.llama.export import LlamaExporter
from .config import ParConfig, ParJson, sampling_of
from .spec import ParSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..llamagen_vq.config import LlamagenVqConfig
    from ..llamagen_vq.model import LlamagenVq
    from .model import ParTransformer


class ParExporter(LlamaExporter["ParTransformer"]):
    """Exports a PAR and its tokenizer."""

    part = "a PAR transformer"
    growth = "a few tokens"

    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> ParTransformer:
        """Load the transformer; says where the tokens of an image are the published ones."""
        from .checkpoint import load_par

        said = read_config_json(job)
        model = load_par(tensors, job.spec, said)
        if job.entry.config is None and said.block_size is None:
            length = model.config.length
            job.reporter.say(f"no config.json says block_size: {length}, as of the published size")
        return model

    def spec(self, job: ExportJob, model: ParTransformer, tokenizer: LlamagenVq) -> ParSpec:
        """Return what the runtime needs to know of the generator."""
        return generator_spec(
            model.config, tokenizer.config, job.form, read_config_json(job).sampling
        )

    def bounds(self, model: ParTransformer) -> list[tuple[int, int]]:
        """Return steps of one token, and of a group."""
        from .parity import steps

        return steps(model.config.length, model.config.group)


def read_config_json(job: ExportJob) -> ParJson:
    """Return what the `config.json` beside the weights says."""
    from ...export.checkpoint.config_json import read_beside

    return read_beside(job.paths[0].parent, ParJson)


def generator_spec(
    config: ParConfig,
    tokenizer: LlamagenVqConfig,
    form: ExportShape = DYNAMIC,
    sampling: Defaults | None = None,
) -> ParSpec:
    """Return what the runtime needs to know; `sampling` instead of the published one."""
    return ParSpec(
        **raster_fields(config, tokenizer.stride, form),
        group=config.group,
        defaults=sampling or sampling_of(config),
    )
