"""The schedule of a toy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arvg_trt.runtime.images import FloatImage
from arvg_trt.runtime.loop import (
    Batch,
    CachedSteps,
    OpenSession,
    choose,
    open_graphs,
    require_finite,
)
from arvg_trt.runtime.sampling import Sampling, Tokens

from .spec import ToySpec


class ToyLoop:
    """One token a step, under constant guidance."""

    def __init__(self, folder: Path, spec: ToySpec, session: OpenSession, threads: int) -> None:
        graphs = open_graphs(folder, ("step", "decoder"), session, threads)
        self.spec = spec
        self._decoder = graphs["decoder"]
        self._steps = CachedSteps([graphs["step"]], spec)

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        spec, steps = self.spec, self._steps
        batch = Batch(labels, spec.num_classes, sampling)
        steps.start(batch.rows)
        tokens = batch.labels[:, None] + spec.vocab_size
        chosen = []
        for k in range(spec.length):
            logits = batch.split_rows(steps.run(batch.rows, 1, {"tokens": tokens}))
            require_finite(logits, f"step {k}", steps.path)
            chosen.append(choose(logits, sampling.cfg, streams, sampling))
            tokens = batch.fill_rows(chosen[-1])
            tick()
        found = np.concatenate(chosen, axis=1)
        indices = found.reshape(-1, spec.side, spec.side).astype(np.int32)
        return self._decoder.run({"indices": indices})["image"], found  # type: ignore[return-value]
