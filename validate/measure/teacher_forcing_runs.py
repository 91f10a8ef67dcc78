"""Make the runs that FP32 and the candidates are compared on under teacher forcing.

They feed all tokens at once, or steps of a recorded trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...graph.sites import load_sites
from ...numerics.scheme import Plan
from ...recipe.options import ValidateOptions
from ...runtime.generator import Generated, Generator, choose_sampling
from ...runtime.recording import GraphRun, Recording, Trajectories
from ...runtime.sessions.onnxruntime import fast_session, reference_session
from ...runtime.spec import TEACHER_FORCED, GeneratorSpec
from ...samples.encoded import image_tokens
from ...samples.files import graph_of, load_sample, save_sample
from ...samples.generated import Tokens, teacher_forcing
from ...samples.images import ImageSource
from ...workspace.files import decode_json
from ..report.schema import ENGINE, QDQ
from .images import Batch
from .site_outputs import compared_sites, open_with_outputs, site_outputs, undo_folds
from .teacher_forcing import ComparedGraph, TeacherForcedRun

Folders = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Say which images both sides of a validation generate."""

    export: Path
    spec: GeneratorSpec
    labels: tuple[int, ...]
    options: ValidateOptions
    names: tuple[str, ...]

    def batches(self, generator: Generator, seed: int | None = None) -> Iterator[Generated]:
        return generator.batches(
            self.labels,
            seed=self.options.seed if seed is None else seed,
            sampling=choose_sampling(self.spec),
            batch_size=self.options.batch_size,
        )


class TeacherForcing(Protocol):
    """Make FP32's images first, then the runs that both sides are compared on."""

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        """Return the outputs that are compared, by graph."""
        ...

    @property
    def count(self) -> int:
        """Return how many runs there are, once the images are made."""
        ...

    def batches(self) -> Iterator[Batch]: ...

    def runs(self) -> Iterator[TeacherForcedRun]: ...


@dataclass(slots=True)
class TokenForcing:
    """Feed the graph of all positions with the tokens of these images or of the user's."""

    request: GenerationRequest
    source: ImageSource | None
    image_classes: tuple[int, ...]
    _made: list[Tokens] = field(default_factory=list)

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        return {TEACHER_FORCED: ("logits",)}

    @property
    def count(self) -> int:
        return self._rows * len(self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.source.names if self.source else self.request.names

    @property
    def _rows(self) -> int:
        """Return the rows per image: with its class and, under guidance, without one."""
        return 1 + (choose_sampling(self.request.spec).cfg > 0)

    def batches(self) -> Iterator[Batch]:
        generator = Generator.open(
            self.request.export, session=reference_session, threads=self.request.options.threads
        )
        for batch in self.request.batches(generator):
            self._made.append(batch.tokens)
            yield batch.images, batch.tokens

    def runs(self) -> Iterator[TeacherForcedRun]:
        """Yield one row at a time, so that all outputs of its sites fit in memory."""
        export, spec = self.request.export, self.request.spec
        force = teacher_forcing(export)
        if self.source is None:
            tokens: Iterator[NDArray[Any]] = (row[None] for rows in self._made for row in rows)
            classes: Sequence[int] = self.request.labels
        else:
            tokens = image_tokens(export, spec, self.source, self.request.options.threads)
            classes = self.image_classes
        for name, label, own in zip(self._names, classes, tokens, strict=True):
            forced = force(own)
            for row in (label, spec.num_classes)[: self._rows]:
                yield TeacherForcedRun(
                    name=name,
                    graph=TEACHER_FORCED,
                    feeds={"labels": np.array([row], np.int64), **forced},
                    tokens=own,
                    conditional=np.array([row != spec.num_classes]),
                )


@dataclass(slots=True)
class TrajectoryForcing:
    """Replay the runs that a family records along FP32's trajectories, on FP32's feeds.

    What one graph hands to the next is each side's own, so the second one's error includes the
    first one's. Runs are stored in `folder`.
    """

    request: GenerationRequest
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
        request, options = self.request, self.request.options
        trajectories = Trajectories(
            export=request.export,
            labels=request.labels,
            sampling=choose_sampling(request.spec),
            seed=options.seed,
            batch_size=options.batch_size,
            threads=options.threads,
            exact=True,
        )
        for made, runs in self.recording.generated(trajectories):
            for number, run in runs:
                alone = self.recording.independent(run)
                path = save_sample(alone, self.folder, len(self._kept))
                self._kept.append((request.names[number], path))
            yield made.images, made.tokens

    def runs(self) -> Iterator[TeacherForcedRun]:
        for name, path in self._kept:
            graph, feeds = graph_of(path), load_sample(path, ())
            assert graph is not None
            carried = self.recording.carried(GraphRun(graph, feeds))
            yield TeacherForcedRun(name=name, graph=graph, feeds=feeds, carried=carried)


def compared_graphs(
    export: Path, folders: Folders, outputs: Mapping[str, tuple[str, ...]], threads: int
) -> dict[str, ComparedGraph]:
    """Open the graphs by name, of FP32 and of the candidates that have all of them."""
    able = {
        name: folder
        for name, folder in folders.items()
        if all((folder / f"{graph}.onnx").is_file() for graph in outputs)
    }
    return {
        graph: compared_graph(export, able, graph, names, threads)
        for graph, names in outputs.items()
    }


def compared_graph(
    export: Path, folders: Folders, graph: str, outputs: tuple[str, ...], threads: int
) -> ComparedGraph:
    """Open one graph; FP32's and the Q/DQ graph have the outputs of their sites too."""
    file, quantized = f"{graph}.onnx", folders[QDQ]
    plan = decode_json(quantized / "plan.json", Plan, do="run `arvg-trt quantize` again")
    sites = compared_sites(load_sites(export).of_graph(graph), plan)
    tensors = list(site_outputs(sites, outputs).values())
    sessions = {
        ENGINE: fast_session,
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
