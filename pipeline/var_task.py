"""The processes of VAR's export: one writes the graphs, the next compares them with PyTorch."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..export.var_form import VarForm
from ..runtime.image_sources import ImageSource
from .common import Reporter
from .export_job import ExportJob
from .second_process import call, serve

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.generators.var_config import VarConfig

LABEL = 207


class VarTask(msgspec.Struct, frozen=True, kw_only=True):
    """What to do with which checkpoint, images and folder of graphs."""

    what: Literal["write", "compare"]
    model: str
    spec: str
    paths: tuple[str, ...]
    images: tuple[str, ...]
    folder: str
    form: VarForm


class Silent(Reporter):
    """The first process tells what is done."""

    def progress(self, task: str, done: int, total: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass


def do_apart(what: Literal["write", "compare"], job: ExportJob, folder: Path) -> dict[str, Any]:
    """The parameters of both halves, or what was found of every graph, for the manifest.

    Raises:
        ExportError: the checkpoint does not fit, or a difference above the tolerance.
        OutOfMemory: named as such, also where the system killed the process.
    """
    request = VarTask(
        what=what,
        model=job.entry.name,
        spec=job.spec,
        paths=tuple(map(str, job.paths)),
        images=tuple(map(str, job.images)),
        folder=str(folder),
        form=job.form,
    )
    return call(__name__, request, dict[str, Any])


def work(task: VarTask) -> dict[str, Any]:
    from ..export.zoo import find_model
    from .export_var import write_graphs

    job = ExportJob(
        entry=find_model(task.model),
        spec=task.spec,
        paths=tuple(map(Path, task.paths)),
        source=ImageSource(tuple(map(Path, task.images))),
        reporter=Silent(),
        form=task.form,
    )
    return {"write": write_graphs, "compare": compare}[task.what](job, Path(task.folder))


def compare(job: ExportJob, folder: Path) -> dict[str, Any]:
    """PyTorch computes with both halves of the model, which go before the graphs are opened."""
    import torch

    from ..export.var_parity import check_var_parity, compute_references, resize
    from ..export.var_tokenizer_parity import (
        check_tokenizer_parity,
        compute_tokenizer_references,
    )
    from .export_var import load_models

    form = job.form
    model, vae = load_models(job)
    pictures = job.pictures(vae.config.image_size)
    tokenizer = compute_tokenizer_references(vae, model.word_embed, pictures)
    images = form.static_batch or 1
    shown = torch.from_numpy(resize(tokenizer.features, images)).repeat(2, 1, 1)
    references = compute_references(model, labels(model.config, images), shown, form)
    del model, vae
    gc.collect()
    tokens, differences = check_tokenizer_parity(folder, tokenizer, form)
    differences += check_var_parity(folder, references)
    return {"encoder": tokens, "graphs": differences}


def labels(config: VarConfig, images: int) -> Tensor:
    """A class an image, and as often the null class, as guidance runs them."""
    import torch

    classes = [(LABEL + k) % config.num_classes for k in range(images)]
    return torch.tensor([*classes, *[config.num_classes] * images])


if __name__ == "__main__":
    serve(VarTask, work)
