"""Families whose transformer makes the tokens of one map: what differs between their tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arvg_trt.export.facts import Difference
from arvg_trt.export.shape import DYNAMIC, ExportShape
from arvg_trt.families.llamagen.checkpoint import load_llamagen
from arvg_trt.families.llamagen.export import LlamagenExporter
from arvg_trt.families.llamagen.parity import steps as llamagen_steps
from arvg_trt.families.par.checkpoint import load_par
from arvg_trt.families.par.config import ParJson
from arvg_trt.families.par.export import ParExporter
from arvg_trt.families.par.parity import steps as par_steps
from arvg_trt.families.rar.checkpoint import load_rar
from arvg_trt.families.rar.export import RarExporter
from arvg_trt.families.rar.parity import References, check_rar_parity, compute_rar_references
from arvg_trt.families.rar.write import export_rar
from arvg_trt.families.shared.cached_steps import (
    StepReferences,
    check_parity,
    compute_step_references,
)
from arvg_trt.families.shared.exporter import TokenMapExporter
from arvg_trt.families.shared.llama.config import LlamaJson
from arvg_trt.families.shared.llama.write import export_llama

from ..llamagen import models as llamagen
from ..par import models as par
from ..rar import models as rar
from .models import Tensors, state_of


@dataclass(frozen=True)
class TokenFamily:
    """A family's tiny model, how it is loaded, written and compared.

    `tokenizer` gives the tensors of one with so many codes. `references` takes a model, labels and
    all tokens of images; `check` compares what they say with a folder's graphs. `steps` are the
    tokens of each step that is compared, and those behind it in the cache; `bounds` where steps
    may begin and end. `group` tokens are made at once.
    """

    name: str
    config: Any
    files: tuple[str, str]
    graphs: tuple[str, ...]
    exporter: TokenMapExporter[Any, Any]
    random_transformer: Callable[..., nn.Module]
    tokenizer: Callable[[int], Tensors]
    write_checkpoint: Callable[[Path, Tensors | None, Tensors | None], Path]
    load: Callable[[Tensors, str], nn.Module]
    export: Callable[..., object]
    references: Callable[..., Any]
    check: Callable[[Path, Any], tuple[Difference, ...]]
    steps: tuple[tuple[int, int], ...]
    bounds: tuple[tuple[int, ...], ...]
    group: int = 1
    codes: int = field(default=48)

    @property
    def shown(self) -> int:
        """Tokens of an image that full.onnx takes."""
        return int(self.config.length) - self.group

    def transformer_state(self) -> Tensors:
        return state_of(self.random_transformer())

    def checkpoint(self, folder: Path) -> Path:
        """Write both files of the tiny model."""
        return self.write_checkpoint(folder, self.transformer_state(), self.tokenizer(self.codes))


def vq_tensors(codes: int) -> Tensors:
    config = replace(par.TOKENIZER, vocab_size=codes)
    return par.official_tokenizer(state_of(par.random_llamagen(config)))


def maskgit_tensors(codes: int) -> Tensors:
    return state_of(rar.random_maskgit(replace(rar.TOKENIZER, vocab_size=codes)))


def llama_references(group: int) -> Callable[..., StepReferences]:
    def references(
        model: Any, labels: Tensor, tokens: Tensor, form: ExportShape = DYNAMIC
    ) -> StepReferences:
        return compute_step_references(model, labels, tokens[:, :-group], form)

    return references


def cached_of(references: StepReferences | References) -> StepReferences:
    """Return what the steps should compute, without RAR's modulation."""
    return references.steps if isinstance(references, References) else references


LENGTH = par.SMALL.length
PAR = TokenFamily(
    name="par",
    config=par.SMALL,
    files=par.FILES,
    graphs=("step", "full"),
    exporter=ParExporter(),
    random_transformer=par.random_par,
    tokenizer=vq_tensors,
    write_checkpoint=par.write_checkpoint,
    load=lambda tensors, where: load_par(tensors, where, ParJson(**par.JSON)),
    export=export_llama,
    references=llama_references(par.SMALL.group),
    check=lambda folder, wanted: check_parity(folder, wanted, par_steps(LENGTH, par.SMALL.group)),
    steps=((1, 0), (1, 1), (1, 2), (1, 3), (4, 4), (4, 8), (4, 12)),
    # The class, single tokens, the special tokens, groups.
    bounds=((0, 1, 2, 3, 4, 8, 12, 16),),
    group=par.SMALL.group,
)
LLAMAGEN = TokenFamily(
    name="llamagen",
    config=llamagen.SMALL,
    files=llamagen.FILES,
    graphs=("step", "full"),
    exporter=LlamagenExporter(),
    random_transformer=llamagen.random_llamagen,
    tokenizer=vq_tensors,
    write_checkpoint=llamagen.write_checkpoint,
    load=lambda tensors, where: load_llamagen(tensors, where, LlamaJson(**llamagen.JSON)),
    export=export_llama,
    references=llama_references(1),
    check=lambda folder, wanted: check_parity(folder, wanted, llamagen_steps(LENGTH)),
    steps=((1, 0), (1, 1), (1, 2), (1, 8), (1, 15)),
    bounds=(tuple(range(LENGTH + 1)),),
)
RAR = TokenFamily(
    name="rar",
    config=rar.SMALL,
    files=rar.FILES,
    graphs=("condition", "step", "full"),
    exporter=RarExporter(),
    random_transformer=rar.random_rar,
    tokenizer=maskgit_tensors,
    write_checkpoint=rar.write_checkpoint,
    load=load_rar,
    export=export_rar,
    references=compute_rar_references,
    check=check_rar_parity,
    steps=((2, 0), (1, 2), (1, 3), (12, 4), (1, 16)),
    # Two tokens and single ones; any number behind any cache.
    bounds=((0, *range(2, LENGTH + 2)), (0, 1, 5, 6, LENGTH + 1)),
)
FAMILIES = {family.name: family for family in (PAR, LLAMAGEN, RAR)}
