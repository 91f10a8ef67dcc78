"""Export a generator in two subprocesses: one writes its graphs, the next compares them.

Tracing keeps what it saw until its process ends, and so would the mapped checkpoint stay.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from ...export.facts import CheckpointFacts, Parity, PartParameters
from ...export.shape import ExportShape
from ...runtime.families import find_family
from ...samples.images import ImageSource
from ...workspace.stage import SilentReporter
from ...workspace.worker_process import run_isolated, serve_worker, tell_progress
from ..base import Exporter
from ..variants import find_model
from .job import ExportJob

What = Literal["write", "compare"]
Result = TypeVar("Result", bound="Written | Parity")


class ModelTask(msgspec.Struct, frozen=True, kw_only=True):
    """Say what to do with which checkpoint, images and folder of graphs."""

    what: What
    model: str
    spec: str
    paths: tuple[str, ...]
    images: tuple[str, ...]
    folder: str
    form: ExportShape
    weights: Literal["ema", "model"] | None = None


class Written(msgspec.Struct, frozen=True):
    """Count the parameters of what was written, and hold the lines for the user."""

    parameters: PartParameters
    lines: tuple[str, ...]


class Lines(SilentReporter):
    """Collect the lines for the process that asked, and tell it of the progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, task: str, done: int, total: int) -> None:
        tell_progress(task, done, total)


class GeneratorExporter(Exporter):
    """Export a generator in two subprocesses: write its graphs, then compare them."""

    @abstractmethod
    def check_shape(self, name: str, form: ExportShape) -> None:
        """Raise ExportError for a shape that its graphs cannot have."""

    @abstractmethod
    def write_graphs(self, job: ExportJob, folder: Path) -> PartParameters:
        """Write everything that the export leaves; return each part's parameters."""

    @abstractmethod
    def compare_graphs(self, job: ExportJob, folder: Path) -> Parity:
        """Compare both parts with PyTorch; return how far every graph differs.

        Raises:
            ExportError: a difference above the tolerance; names the graph.
        """

    def export(self, job: ExportJob, folder: Path) -> CheckpointFacts:
        """Write graphs, sites.json and generator.json; return the manifest's results."""
        job.reading()
        written = run_task("write", job, folder, Written)
        for line in written.lines:
            job.reporter.say(line)
        job.comparing()
        parity = run_task("compare", job, folder, Parity)
        job.comparing(done=True)
        return CheckpointFacts(
            parameters=written.parameters.total,
            parameters_of=written.parameters,
            parity=parity,
            parity_images=job.image_names,
        )


def run_task(what: What, job: ExportJob, folder: Path, result: type[Result]) -> Result:
    """Run a task in a subprocess; return what `work` returned there.

    Raises:
        ExportError: the checkpoint does not fit, or a difference above the tolerance.
        OutOfMemory: named as such, also where the system killed the process.
    """
    request = ModelTask(
        what=what,
        model=job.entry.name,
        spec=job.spec,
        paths=tuple(map(str, job.paths)),
        images=tuple(map(str, job.images)),
        folder=str(folder),
        form=job.form,
        weights=job.weights,
    )
    return run_isolated(__name__, request, result, job.reporter.progress)


def work(task: ModelTask) -> Written | Parity:
    entry, reporter = find_model(task.model), Lines()
    job = ExportJob(
        entry=entry,
        spec=task.spec,
        paths=tuple(map(Path, task.paths)),
        source=ImageSource(tuple(map(Path, task.images))),
        reporter=reporter,
        form=task.form,
        weights=task.weights,
    )
    exporter: GeneratorExporter = find_family(entry.family).load_exporter()
    folder = Path(task.folder)
    if task.what == "compare":
        return exporter.compare_graphs(job, folder)
    return Written(exporter.write_graphs(job, folder), tuple(reporter.lines))


if __name__ == "__main__":
    serve_worker(ModelTask, work)
