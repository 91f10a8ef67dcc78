"""RAR's schedule: one token after another in raster order, each a step over the KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.images import FloatImage
from ...runtime.loop import Batch, CachedSteps, OpenSession, choose, open_graphs, require_finite
from ...runtime.sampling import Sampling, Tokens
from ...runtime.sessions.session import Array, Session
from .spec import ROWS_AHEAD, RarSpec


class Modulations:
    """condition.onnx over the positions of a batch, some ahead of the steps that need them."""

    def __init__(self, session: Session, labels: NDArray[np.int64], positions: int) -> None:
        self._session = session
        self._labels = labels
        self._positions = positions
        self._start = self._end = 0
        self._values: dict[str, Array] = {}

    def of(self, first: int, n: int) -> dict[str, Array]:
        """modulation [rows, n, depth, 6, C] and head_modulation [rows, n, 2, C]."""
        if first + n > self._end:
            ahead = max(n, ROWS_AHEAD // len(self._labels))
            self._start, self._end = first, min(first + ahead, self._positions)
            ids = np.arange(self._start, self._end)
            self._values = self._session.run({"labels": self._labels, "position_ids": ids})
        a = first - self._start
        return {name: value[:, a : a + n] for name, value in self._values.items()}


class RarLoop:
    """The graphs of a RAR and the loop over its tokens.

    Rows 0..B-1 of the transformer are conditional; with guidance rows B..2B-1 have the null
    class. The first step takes cls and the class, each later one the token before.
    """

    def __init__(self, folder: Path, spec: RarSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
        graphs = open_graphs(folder, ("condition", "step", "decoder"), session, threads)
        self.spec = spec
        self._condition, self._decoder = graphs["condition"], graphs["decoder"]
        self._steps = CachedSteps([graphs["step"]], spec)

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        """Run the schedule of `Loop.run`; guidance rises as `strength` says."""
        spec, steps = self.spec, self._steps
        batch = Batch(labels, spec.num_classes, sampling)
        modulations = Modulations(self._condition, batch.labels, spec.length + 1)
        steps.start(batch.rows)
        tokens, position = spec.prefix(batch.labels), 0
        chosen = []
        for k in range(spec.length):
            n = tokens.shape[1]
            feeds = {"tokens": tokens, **modulations.of(position, n)}
            logits = batch.split_rows(steps.run(batch.rows, n, feeds)[:, -1:])
            require_finite(logits, f"step {k}", steps.path)
            new = choose(logits, strength(sampling, k, spec.length), streams, sampling)
            chosen.append(new)
            tokens, position = batch.fill_rows(new), position + n
            tick()
        found = np.concatenate(chosen, axis=1)
        indices = found.reshape(-1, spec.side, spec.side).astype(np.int32)
        return self._decoder.run({"indices": indices})["image"], found  # type: ignore[return-value]


def strength(sampling: Sampling, k: int, length: int) -> float:
    """(g - 1) (1 - cos(pi (k / L)^p)) / 2 at token k: from 0 to almost g - 1; p = 0 is constant.

    With `guide` it makes u + (1 + strength) (c - u), as the official sampler has it.
    """
    power = sampling.cfg_power or 0.0
    return (sampling.cfg - 1) * (1 - math.cos(math.pi * (k / length) ** power)) / 2
