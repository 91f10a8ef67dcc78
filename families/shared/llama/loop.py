"""The schedule of LlamaGen's transformer: one step graph over its cache, constant guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ....runtime.images import FloatImage
from ....runtime.loop import (
    Batch,
    CachedSteps,
    CacheSpec,
    OpenSession,
    choose,
    open_graphs,
    require_finite,
)
from ....runtime.sampling import Sampling, Tokens


class LlamaSpec(CacheSpec, Protocol):
    """Say what `generator.json` must hold for this schedule."""

    @property
    def side(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def order(self) -> NDArray[np.int64]: ...


class LlamaLoop:
    """The graphs and the loop over their steps, which predict as many tokens as they take.

    Rows 0..B-1 of the transformer are conditional; with guidance rows B..2B-1 have the null
    class. The first step takes the class, each later one what was chosen before it.
    """

    def __init__(self, folder: Path, spec: LlamaSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
        graphs = open_graphs(folder, ("step", "decoder"), session, threads)
        self.spec = spec
        self._decoder = graphs["decoder"]
        self._steps = CachedSteps([graphs["step"]], spec)

    def taken(self, k: int, chosen: Tokens) -> Tokens:
        """Return what step k takes, [rows, n], from the tokens chosen before it."""
        return chosen

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        """Run the schedule of `Loop.run`; tokens are in the order of generation.

        Guidance is u + cfg (c - u); as officially there is none up to a `cfg` of 1.
        """
        spec, steps = self.spec, self._steps
        sampling = sampling if sampling.cfg > 1 else replace(sampling, cfg=0.0)
        batch = Batch(labels, spec.num_classes, sampling)
        steps.start(batch.rows)
        tokens = batch.labels[:, None] + spec.vocab_size  # a row of the table behind the tokens'
        found: list[Tokens] = []
        for k in range(spec.steps):
            tokens = self.taken(k, tokens)
            logits = batch.split_rows(steps.run(batch.rows, tokens.shape[1], {"tokens": tokens}))
            require_finite(logits, f"step {k}", steps.path)
            found.append(choose(logits, sampling.cfg - 1, streams, sampling))
            tokens = batch.fill_rows(found[-1])
            tick()
        chosen = np.concatenate(found, axis=1)
        indices = np.empty((len(chosen), spec.length), np.int32)
        indices[:, spec.order] = chosen
        maps = indices.reshape(-1, spec.side, spec.side)
        return self._decoder.run({"indices": maps})["image"], chosen  # type: ignore[return-value]
