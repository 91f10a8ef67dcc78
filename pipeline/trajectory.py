"""What a MAR's graphs are fed along its trajectory, at a few of its passes and diffusion times.

A picture takes hundreds of runs of the pass and thousands of the denoiser: of each batch of
pictures a seeded choice is kept, spread over the trajectory, another for each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..runtime.feeds import Array, Arrays, GraphRun
from ..runtime.generate.mar_spec import MarSpec
from ..runtime.generator import BATCH_SIZE, Generator
from ..runtime.sampling import Sampling
from ..runtime.sessions.onnxruntime import SLOW_OPTIMIZERS, OnnxRuntimeSession

PASSES = 4  # kept of a batch of pictures
TIMES = 4  # kept of the diffusions behind each of these passes


class Recorder(OnnxRuntimeSession):
    """A graph opened for speed that keeps what it is fed in chosen runs."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, optimized=True, threads=threads, disabled=SLOW_OPTIMIZERS)
        self.start(())

    def start(self, chosen: Collection[int]) -> None:
        """Count runs from 0 again, and keep the feeds of those."""
        self._chosen, self._next = frozenset(chosen), 0
        self.kept: list[Arrays] = []

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._next in self._chosen:
            self.kept.append(dict(feeds))
        self._next += 1
        return super().run(feeds, outputs)


def trajectory_runs(
    export: Path,
    spec: MarSpec,
    labels: Sequence[int],
    seed: int,
    sampling: Sampling,
    tick: Callable[[int, int], None],
) -> Iterator[GraphRun]:
    """Runs of pass.onnx and denoise.onnx that made pictures of `labels`, by batches of pictures.

    All rows of a run, those of the null class too. The picture depends on the seed and on its
    number alone, as always.
    """
    graphs: dict[str, Recorder] = {}

    def opened(path: Path, threads: int) -> Recorder:
        graphs[path.stem] = Recorder(path, threads)
        return graphs[path.stem]

    generator = Generator.open(export, session=opened)
    passes = sampling.iterations or spec.defaults.iterations
    steps = sampling.diffusion_steps or spec.defaults.diffusion_steps
    made = generator.batches(
        labels, seed=seed, sampling=sampling, batch_size=BATCH_SIZE, progress=tick
    )
    for number in range(-(-len(labels) // BATCH_SIZE)):
        rng = np.random.default_rng([seed, number])
        chosen = spread(rng, passes, PASSES)
        graphs["pass"].start(chosen)
        graphs["denoise"].start([k * steps + t for k in chosen for t in spread(rng, steps, TIMES)])
        next(made)
        for graph in ("pass", "denoise"):
            yield from (GraphRun(graph, feeds) for feeds in graphs[graph].kept)


def spread(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """`count` of `total` numbers from 0, one from each of as many like parts; all if fewer."""
    return [int(rng.choice(part)) for part in np.array_split(np.arange(total), min(count, total))]
