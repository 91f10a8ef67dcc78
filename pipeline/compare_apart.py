"""A generator's graphs against PyTorch in a second process, whose memory is gone when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..export.var_form import VarForm
from ..runtime.image_sources import ImageSource
from .common import Reporter
from .export_job import ExportJob
from .second_process import answer, call


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Which checkpoint, on which images, with the graphs of which folder."""

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


def compare_apart(job: ExportJob, folder: Path) -> dict[str, Any]:
    """Differences of every graph and the tokens of the encoder, for the manifest.

    Raises:
        ExportError: a difference above the tolerance; names the graph.
        OutOfMemory: named as such, also where the system killed the process.
    """
    request = Comparison(
        model=job.entry.name,
        spec=job.spec,
        paths=tuple(map(str, job.paths)),
        images=tuple(map(str, job.images)),
        folder=str(folder),
        form=job.form,
    )
    return call(__name__, request, dict[str, Any])


def compare(request: Comparison) -> dict[str, Any]:
    from ..export.zoo import find_model
    from .export_rar import compare_rar
    from .export_var import compare_var

    entry = find_model(request.model)
    job = ExportJob(
        entry=entry,
        spec=request.spec,
        paths=tuple(map(Path, request.paths)),
        source=ImageSource(tuple(map(Path, request.images))),
        reporter=Silent(),
        form=request.form,
    )
    return {"rar": compare_rar, "var": compare_var}[entry.family](job, Path(request.folder))


if __name__ == "__main__":
    answer(Comparison, compare)
