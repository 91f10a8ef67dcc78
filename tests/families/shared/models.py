"""Tiny models and their checkpoints, as tests of several families take them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pytest
import torch
from torch import Tensor, nn

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.export.shape import DYNAMIC, ExportShape
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.shared.job import ExportJob
from arvg_trt.families.variants import find_model
from arvg_trt.graph.sites import Site
from arvg_trt.samples.images import open_source
from arvg_trt.workspace.stage import SilentReporter

from ...shared import AFTER_EXPORT, made_once

Tensors = dict[str, Tensor]
Transformer = TypeVar("Transformer", bound=nn.Module)
Tokenizer = TypeVar("Tokenizer", bound=nn.Module)


@dataclass(frozen=True)
class TinyExported(Generic[Transformer, Tokenizer]):
    """Both models, and the workspace their checkpoint was exported to."""

    transformer: Transformer
    tokenizer: Tokenizer
    workspace: Path

    @property
    def folder(self) -> Path:
        return self.workspace / "export"


class HasTokens(Protocol):
    @property
    def vocab_size(self) -> int: ...


class LoadsModels(Protocol):
    def load(self, job: ExportJob) -> object: ...


def random_tokens(config: HasTokens, rows: int, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, count), generator=generator)


def state_of(model: nn.Module) -> Tensors:
    return dict(model.state_dict())


def job(name: str, checkpoint: Path) -> ExportJob:
    """Return what an exporter is asked for, with one photograph."""
    entry = find_model(name)
    paths = resolve_checkpoint(str(checkpoint), entry.files)
    source = open_source("skimage:astronaut")
    return ExportJob(entry, str(checkpoint), tuple(paths), source, SilentReporter())


def assert_exporter_refuses(
    exporter: LoadsModels, name: str, checkpoint: Path, *words: str
) -> None:
    """An error of one line that holds `words`."""
    with pytest.raises(ExportError) as caught:
        exporter.load(job(name, checkpoint))
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def exported_once(
    factory: pytest.TempPathFactory,
    model: str,
    config: object,
    export: Callable[[WeightFile, ExportShape], tuple[Site, ...]],
    form: ExportShape = DYNAMIC,
) -> tuple[Path, tuple[Site, ...]]:
    """A copy of the graphs that `export` writes, and their sites; made once a machine.

    `model` and `config` say all that decides the model's weights.
    """
    key = hashlib.sha256(repr((config, form)).encode()).hexdigest()[:8]

    def make(folder: Path) -> tuple[Site, ...]:
        with WeightFile(folder) as weights:
            return export(weights, form)

    folder, sites = made_once(factory, f"{model}-{key}", make, unused=AFTER_EXPORT)
    return folder, sites


def without(name: str) -> Callable[[Tensors], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


class Payload:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def cache_file(cache: Path, repo: str, name: str) -> Path:
    """A file as the Hub's cache holds it."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0")
    (snapshot / name).write_bytes(b"x")
    return snapshot / name
