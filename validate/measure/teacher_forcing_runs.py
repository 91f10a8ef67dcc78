"""Feeds that both sides of a validation get: all tokens at once, or steps of a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ...graph.sites import load_sites
from ...numerics.scheme import Plan
from ...runtime.generator import Generator
from ...runtime.recording import GraphRun, Recording
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.sessions.session import OpenSession
from ...runtime.spec import TEACHER_FORCED
from ...samples.encoded import EncodedImages
from ...samples.files import graph_of, load_sample, save_sample
from ...samples.forcing import Tokens, forced_rows, teacher_forcing
from ...samples.generated import GeneratedSamples, null_class
from ...workspace.files import decode_json
from ..report.schema import ENGINE, QDQ
from .generated_images import Batch
from .measurement import Folders
from .site_outputs import compared_sites, open_with_outputs, site_outputs, undo_folds
from .teacher_forcing import ComparedGraph, TeacherForcedRun


class TeacherForcing(Protocol):
    """Make FP32's images first, then the runs that both sides are compared on."""

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        """Return the outputs that are compared, by graph."""
        ...

    @property
    def count(self) -> int:
        """Return how many runs there are, after the pictures."""
        ...

    def batches(self) -> Iterator[Batch]: ...

    def runs(self) -> Iterator[TeacherForcedRun]: ...


@dataclass(slots=True)
class TokenForcing:
    """The graph of all positions, on the tokens of generated images or of the user's."""

    generated: GeneratedSamples
    images: EncodedImages | None
    _made: list[Tokens] = field(default_factory=list)

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        return {TEACHER_FORCED: ("logits",)}

    @property
    def count(self) -> int:
        names = self.generated.image_names if self.images is None else self.images.names
        return len(names) * (1 if null_class(self.generated.spec) is None else 2)

    def batches(self) -> Iterator[Batch]:
        asked = self.generated
        generator = Generator.open(asked.export, session=reference_session, threads=asked.threads)
        for batch in asked.batches(generator):
            self._made.append(batch.tokens)
            yield batch.images, batch.tokens

    def runs(self) -> Iterator[TeacherForcedRun]:
        """Yield one row at a time, so that all that sites give fits in memory."""
        spec = self.generated.spec
        force, null = teacher_forcing(self.generated.export), null_class(spec)
        if self.images is None:
            tokens: Iterator[NDArray[Any]] = (row[None] for rows in self._made for row in rows)
            names, labels = self.generated.image_names, self.generated.labels
        else:
            tokens = self.images.tokens()
            names, labels = self.images.names, self.images.labels
        for name, label, own in zip(names, labels, tokens, strict=True):
            for feeds in forced_rows(force(own), [label], null):
                yield TeacherForcedRun(
                    name=name,
                    graph=TEACHER_FORCED,
                    feeds=feeds,
                    tokens=own,
                    conditional=feeds["labels"] != spec.num_classes,
                )


@dataclass(slots=True)
class TrajectoryForcing:
    """Replay the runs that a family records along FP32's trajectories, on FP32's feeds.

    What one graph hands to the next is each side's own, so the second one's error includes the
    first one's. Runs are stored in `folder`.
    """

    generated: GeneratedSamples
    recording: Recording
    folder: Path
    _kept: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        return self.recording.outputs

    @property
    def count(self) -> int:
        return len(self._kept)

    def batches(self) -> Iterator[Batch]:
        names = self.generated.image_names
        trajectories = self.generated.trajectories(exact=True)
        for made, runs in self.recording.generated(trajectories):
            for number, run in runs:
                alone = self.recording.independent(run)
                path = save_sample(alone, self.folder, len(self._kept))
                self._kept.append((names[number], path))
            yield made.images, made.tokens

    def runs(self) -> Iterator[TeacherForcedRun]:
        for name, path in self._kept:
            graph, feeds = graph_of(path), load_sample(path, ())
            assert graph is not None
            carried = self.recording.carried(GraphRun(graph, feeds))
            yield TeacherForcedRun(name=name, graph=graph, feeds=feeds, carried=carried)


def compared_graphs(
    export: Path,
    folders: Folders,
    outputs: Mapping[str, tuple[str, ...]],
    threads: int,
    engine: OpenSession = fast_session,
) -> dict[str, ComparedGraph]:
    """Open the graphs by name, of FP32 and of the candidates that have all of them.

    `engine` opens those of the engine that is executed.
    """
    able = {
        name: folder
        for name, folder in folders.items()
        if all((folder / f"{graph}.onnx").is_file() for graph in outputs)
    }
    return {
        graph: compared_graph(export, able, graph, names, threads, engine)
        for graph, names in outputs.items()
    }


def compared_graph(
    export: Path,
    folders: Folders,
    graph: str,
    outputs: tuple[str, ...],
    threads: int,
    engine: OpenSession,
) -> ComparedGraph:
    """Open one graph; that of FP32 and the Q/DQ graph have the outputs of their sites too."""
    file, quantized = f"{graph}.onnx", folders[QDQ]
    plan = decode_json(quantized / "plan.json", Plan, do="run `arvg-trt quantize` again")
    sites = compared_sites(load_sites(export).of_graph(graph), plan)
    tensors = list(site_outputs(sites, outputs).values())
    sessions: dict[str, OpenSession] = {
        ENGINE: engine,
        QDQ: lambda path, threads: open_with_outputs(path, tensors, threads),
    }
    return ComparedGraph(
        reference=open_with_outputs(export / file, tensors, threads),
        candidates={
            name: sessions.get(name, reference_session)(folder / file, threads)
            for name, folder in folders.items()
        },
        outputs=outputs,
        sites=site_outputs(sites, outputs),
        restore={QDQ: undo_folds(quantized / file, sites)},
    )
