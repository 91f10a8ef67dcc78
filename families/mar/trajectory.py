"""Record what a MAR's graphs are fed along its trajectory, at some passes and diffusion times.

An image takes hundreds of runs of the pass and thousands of the denoiser: of each image a seeded
choice is recorded, spread over the trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import CalibrationError
from ...runtime.generator import Generated, Generator
from ...runtime.images import Uint8Image
from ...runtime.recording import Array, Arrays, GraphRun, Trajectories
from ...runtime.sampling import Sampling
from ...runtime.sessions.open import SLOW_OPTIMIZERS, open_session
from ...runtime.sessions.session import SessionObserver
from ...runtime.spec import TIMES as TRAINED_TIMES
from .image_runs import image_runs
from .recorded_runs import PASSES, TIMES, choose_runs
from .spec import DENOISE, GRAPHS, PASS, MarSpec


@dataclass(frozen=True, slots=True)
class MarRecording:
    """Record runs along a MAR's trajectories: passes, and diffusions behind them."""

    spec: MarSpec

    @property
    def graphs(self) -> tuple[str, ...]:
        return GRAPHS

    @property
    def runs_per_image(self) -> Mapping[str, int]:
        passes = min(PASSES, self.spec.defaults.iterations)
        return {PASS: passes, DENOISE: passes * min(TIMES, self.spec.defaults.diffusion_steps)}

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        return {PASS: ("z", "condition"), DENOISE: ("noise", "spread")}

    def generated(
        self, asked: Trajectories
    ) -> Iterator[tuple[Generated, list[tuple[int, GraphRun]]]]:
        """Yield batches of images with the runs that made them."""
        generator, recorders = open_recorded(asked.export, asked.threads, exact=asked.exact)
        batches = generator.batches(
            asked.labels,
            seed=asked.seed,
            sampling=asked.sampling,
            batch_size=asked.batch_size,
            first=asked.first,
            progress=asked.progress,
        )
        numbers = range(asked.first, asked.first + len(asked.labels))
        return recorded_batches(
            batches, recorders, numbers, asked.batch_size, asked.seed, asked.sampling
        )

    def encoded(
        self,
        export: Path,
        load: Callable[[int], Uint8Image],
        labels: Sequence[int],
        *,
        part: range,
        seed: int,
        threads: int = 0,
    ) -> Iterator[GraphRun]:
        """Yield the runs along trajectories that lead to the user's images."""
        return image_runs(export, self.spec, load, labels, part=part, seed=seed, threads=threads)

    def check(self, graph: str, arrays: Arrays, path: Path) -> None:
        """Check orders and times of a saved run.

        Raises:
            CalibrationError: an order or a time that the model does not take.
        """
        if graph == PASS:
            check_orders(arrays, self.spec, path)
        elif not 0 <= int(arrays["time"][0]) < TRAINED_TIMES:
            raise CalibrationError(
                f"time {arrays['time'][0]}, but those of the diffusion are 0 to "
                f"{TRAINED_TIMES - 1}",
                where=str(path),
            )

    def independent(self, run: GraphRun) -> GraphRun:
        """Return the run without what the pass before it gives."""
        return GraphRun(run.graph, {k: v for k, v in run.feeds.items() if k != "condition"})

    def carried(self, run: GraphRun) -> Callable[[Arrays], dict[str, Array]] | None:
        """Return what makes the denoiser's condition of the pass before it."""
        return partial(condition_of, len(run.feeds["x"])) if run.graph == DENOISE else None


def check_orders(arrays: Arrays, spec: MarSpec, path: Path) -> None:
    """Raise CalibrationError for position ids that are no order, or leave nothing unknown."""
    orders, known = arrays["position_ids"], arrays["tokens"].shape[1]
    if not np.array_equal(
        np.sort(orders, axis=1), np.tile(np.arange(spec.length), (len(orders), 1))
    ):
        raise CalibrationError(
            f"position_ids are no orders of the {spec.length} tokens", where=str(path)
        )
    if known >= spec.length:
        raise CalibrationError(f"all {known} tokens are known", where=str(path))


def condition_of(rows: int, outputs: Arrays) -> dict[str, Array]:
    """Return the denoiser's condition [rows, W] of what a pass of R rows gave.

    It is the first rows / R tokens of each row.
    """
    condition = outputs["condition"]
    tokens_condition = condition[:, : rows // len(condition)]
    return {"condition": np.ascontiguousarray(tokens_condition.reshape(rows, -1))}


class Recorder(SessionObserver):
    """Run a graph, for speed or `exact`, and record what it is fed in chosen runs."""

    def __init__(self, path: Path, threads: int, *, exact: bool) -> None:
        super().__init__(
            open_session(path, optimized=not exact, threads=threads, disabled=SLOW_OPTIMIZERS)
        )
        self.start(())

    def start(self, numbers: Collection[int]) -> None:
        """Count runs from 0 again, and record the feeds of the chosen ones."""
        self._chosen, self._next = frozenset(numbers), 0
        self.recorded: dict[int, Arrays] = {}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._next in self._chosen:
            self.recorded[self._next] = dict(feeds)
        self._next += 1
        return super().run(feeds, outputs)


def open_recorded(
    export: Path, threads: int, *, exact: bool = False
) -> tuple[Generator, dict[str, Recorder]]:
    """Open a generator, and return it with the recorders of its graphs by name."""
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
    """Yield batches of images, and the recorded runs that made them, by image number.

    `numbers` are the images', of which each of the `batches` has `batch_size`. A run of pass.onnx
    is followed by those of denoise.onnx behind it. It has the image's conditional rows, then under
    guidance as many of the null class. The image's number and the seed decide which runs of an
    image are recorded.
    """
    for start in range(numbers.start, numbers.stop, batch_size):
        pictures = range(start, min(start + batch_size, numbers.stop))
        runs_of = [choose_runs(seed, number, sampling) for number in pictures]
        for graph in GRAPHS:
            recorders[graph].start({k for runs in runs_of for name, k in runs if name == graph})
        made = next(batches)
        saved = []
        for index, runs in enumerate(runs_of):
            for graph, k in runs:
                feeds = image_rows(recorders[graph].recorded[k], index, len(pictures), sampling)
                saved.append((pictures[index], GraphRun(graph, feeds)))
        yield made, saved


def image_rows(feeds: Arrays, index: int, count: int, sampling: Sampling) -> dict[str, Array]:
    """Return the rows of one of `count` images; a single row, such as a time, is all images'.

    Rows are conditional ones of all pictures in turn, as many of each, then the null class's.
    """
    row_kinds = 1 if sampling.cfg in (0, 1) else 2

    def own(values: Array) -> Array:
        if len(values) == 1:
            return values
        rows = len(values) // (row_kinds * count)
        by_image = values.reshape(row_kinds, count, rows, *values.shape[1:])
        return by_image[:, index].reshape(row_kinds * rows, *values.shape[1:])

    return {name: own(values) for name, values in feeds.items()}
