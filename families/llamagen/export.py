"""Export a LlamaGen with its VQ and compare the graphs with PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ExportError
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.spec import Defaults
from ..shared.exporter import raster_fields
from ..shared.job import ExportJob
from ..shared.llama.config import LlamaConfig, LlamaJson
from ..shared.llama.export import LlamaExporter
from .config import sampling_of
from .spec import LlamagenSpec
from .variants import VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

    from ..llamagen_vq.config import LlamagenVqConfig
    from ..llamagen_vq.model import LlamagenVq
    from .model import LlamagenTransformer


class LlamagenExporter(LlamaExporter["LlamagenTransformer"]):
    """Exports a LlamaGen and its tokenizer."""

    part = "a LlamaGen transformer"
    growth = "one token"
    ignored = "freqs_cis"  # the angles, which are computed; some files have them

    def load_transformer(self, job: ExportJob, tensors: dict[str, Tensor]) -> LlamagenTransformer:
        """Load the transformer; the variant says how many tokens an image has."""
        from .checkpoint import load_llamagen

        asked = job.entry.config
        if asked is not None:
            refuse_other_length(job)
        length = None if asked is None else asked.length
        return load_llamagen(tensors, job.spec, read_config_json(job), length)

    def spec(
        self, job: ExportJob, model: LlamagenTransformer, tokenizer: LlamagenVq
    ) -> LlamagenSpec:
        """Return what the runtime needs to know of the generator."""
        return generator_spec(
            model.config, tokenizer.config, job.form, read_config_json(job).sampling
        )

    def bounds(self, model: LlamagenTransformer) -> list[tuple[int, int]]:
        """Return the first steps, one in the middle and the last."""
        from .parity import steps

        return steps(model.config.length)


def refuse_other_length(job: ExportJob) -> None:
    """Refuse the published file of another variant: it may have the same tensors.

    Raises:
        ExportError: it is one; names both.
    """
    names = {path.name for path in job.paths}
    for variant in (one for one in VARIANTS if one.hub):
        files = {transformer for transformer, _ in variant.files}
        for name in sorted(files & names):
            if variant.name != job.entry.name:
                raise ExportError(
                    f"is not {job.entry.name}: {name} is {variant.name}",
                    where=job.spec,
                    do=f"export it as {variant.name}",
                )


def read_config_json(job: ExportJob) -> LlamaJson:
    """Return what the `config.json` beside the weights says."""
    from ...export.checkpoint.config_json import read_beside

    return read_beside(job.paths[0].parent, LlamaJson)


def generator_spec(
    config: LlamaConfig,
    tokenizer: LlamagenVqConfig,
    form: ExportShape = DYNAMIC,
    sampling: Defaults | None = None,
) -> LlamagenSpec:
    """Return what the runtime needs to know; `sampling` instead of the published one."""
    fields = raster_fields(config, tokenizer.stride, form)
    return LlamagenSpec(**fields, defaults=sampling or sampling_of(config))
