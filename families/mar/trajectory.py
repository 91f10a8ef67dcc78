"""What a MAR's graphs are fed along its trajectory, at a few of its passes and diffusion times.

A picture takes hundreds of runs of the pass and thousands of the denoiser: of each picture a
seeded choice is kept, spread over the trajectory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...runtime.generator import Generated, Generator
from ...runtime.sampling import Sampling
from ...runtime.sessions.onnxruntime import SLOW_OPTIMIZERS, OnnxRuntimeSession
from ...samples.files import Array, Arrays, GraphRun
from .spec import MarSpec

PASSES = 4  # kept of a picture
TIMES = 4  # kept of the diffusions behind each of these passes
PASS, DENOISE = GRAPHS = ("pass", "denoise")
Runs = list[tuple[str, int]]


class Recorder(OnnxRuntimeSession):
    """A graph opened for speed, or `exact`, that keeps what it is fed in chosen runs."""

    def __init__(self, path: Path, threads: int, *, exact: bool) -> None:
        super().__init__(path, optimized=not exact, threads=threads, disabled=SLOW_OPTIMIZERS)
        self.start(())

    def start(self, chosen: Collection[int]) -> None:
        """Count runs from 0 again, and keep the feeds of those."""
        self._chosen, self._next = frozenset(chosen), 0
        self.kept: dict[int, Arrays] = {}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._next in self._chosen:
            self.kept[self._next] = dict(feeds)
        self._next += 1
        return super().run(feeds, outputs)


def open_recorded(
    export: Path, threads: int, *, exact: bool = False
) -> tuple[Generator, dict[str, Recorder]]:
    """A generator and the recorders of its graphs by name."""
    recorders: dict[str, Recorder] = {}

    def opened(path: Path, threads: int) -> Recorder:
        recorders[path.stem] = Recorder(path, threads, exact=exact)
        return recorders[path.stem]

    return Generator.open(export, session=opened, threads=threads), recorders


def recorded_batches(
    batches: Iterator[Generated],
    recorders: Mapping[str, Recorder],
    numbers: range,
    batch_size: int,
    seed: int,
    sampling: Sampling,
) -> Iterator[tuple[Generated, list[tuple[int, GraphRun]]]]:
    """Batches of pictures, and what is kept of the runs that made them, by the picture's number.

    `numbers` are the pictures', of which each of the `batches` has `batch_size`. A run of pass.onnx
    is followed by those of denoise.onnx behind it. It has the picture's conditional rows, then
    under guidance as many of the null class. Which runs of a picture are kept its number and the
    seed decide.
    """
    for start in range(numbers.start, numbers.stop, batch_size):
        pictures = range(start, min(start + batch_size, numbers.stop))
        chosen = [choose_runs(seed, number, sampling) for number in pictures]
        for graph in GRAPHS:
            recorders[graph].start({k for runs in chosen for name, k in runs if name == graph})
        made = next(batches)
        found = []
        for place, runs in enumerate(chosen):
            for graph, k in runs:
                feeds = picture_rows(recorders[graph].kept[k], place, len(pictures), sampling)
                found.append((pictures[place], GraphRun(graph, feeds)))
        yield made, found


def choose_runs(seed: int, number: int, sampling: Sampling) -> Runs:
    """Which of the runs that make a picture are kept: graphs, and runs of each counted from 0.

    A pass comes in front of the diffusions behind it.
    """
    assert sampling.iterations is not None and sampling.diffusion_steps is not None
    rng, steps = np.random.default_rng([seed, number]), sampling.diffusion_steps
    chosen: Runs = []
    for k in spread(rng, range(sampling.iterations), PASSES):
        chosen.append((PASS, k))
        chosen += [(DENOISE, k * steps + t) for t in spread(rng, range(steps), TIMES)]
    return chosen


def kept_passes(spec: MarSpec) -> int:
    """How many passes `choose_runs` keeps of a picture by the model's own sampling."""
    return min(PASSES, spec.defaults.iterations)


def kept_times(spec: MarSpec) -> int:
    """How many runs of the denoiser it keeps behind each."""
    return min(TIMES, spec.defaults.diffusion_steps)


def spread(rng: np.random.Generator, numbers: range, count: int) -> list[int]:
    """`count` of the numbers, one from each of as many like parts; all if they are fewer."""
    parts = np.array_split(numbers, max(1, min(count, len(numbers))))
    return [int(rng.choice(part)) for part in parts if len(part)]


def picture_rows(feeds: Arrays, place: int, count: int, sampling: Sampling) -> dict[str, Array]:
    """The rows of one of `count` pictures; a single row, as of a time, is all pictures'.

    Rows are conditional ones of all pictures in turn, as many of each, then the null class's.
    """
    halves = 1 if sampling.cfg in (0, 1) else 2

    def own(values: Array) -> Array:
        if len(values) == 1:
            return values
        rows = len(values) // (halves * count)
        by_picture = values.reshape(halves, count, rows, *values.shape[1:])
        return by_picture[:, place].reshape(halves * rows, *values.shape[1:])

    return {name: own(values) for name, values in feeds.items()}
