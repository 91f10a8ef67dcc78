"""PAR's schedule: the first tokens one after another, then groups of them, each a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.images import FloatImage
from ...runtime.loop import Batch, CachedSteps, OpenSession, choose, open_graphs, require_finite
from ...runtime.sampling import Sampling, Tokens
from .spec import ParSpec


class ParLoop:
    """The graphs of a PAR and the loop over its groups of tokens.

    Rows 0..B-1 of the transformer are conditional; with guidance rows B..2B-1 have the null
    class. The first step takes the class, the next ones the token before, until `group` tokens
    are there; then a step takes the last of them with the special tokens, and all later ones take
    the group before.
    """

    def __init__(self, folder: Path, spec: ParSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
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
        """As `Loop.run`; tokens are in the order of generation.

        Guidance is u + cfg (c - u); as officially there is none up to a `cfg` of 1.
        """
        spec, steps = self.spec, self._steps
        sampling = sampling if sampling.cfg > 1 else replace(sampling, cfg=0.0)
        batch = Batch(labels, spec.num_classes, sampling)
        steps.start(batch.rows)
        tokens = spec.first(batch.labels)
        chosen = []
        for k in range(spec.steps):
            if k == spec.group:
                special = np.tile(spec.special, (batch.rows, 1))
                tokens = np.concatenate([tokens, special], axis=1)
            logits = batch.split_rows(steps.run(batch.rows, tokens.shape[1], {"tokens": tokens}))
            require_finite(logits, f"step {k}", steps.path)
            chosen.append(choose(logits, sampling.cfg - 1, streams, sampling))
            tokens = batch.fill_rows(chosen[-1])
            tick()
        found = np.concatenate(chosen, axis=1)
        indices = np.empty((len(found), spec.length), np.int32)
        indices[:, spec.order] = found
        maps = indices.reshape(-1, spec.side, spec.side)
        return self._decoder.run({"indices": maps})["image"], found  # type: ignore[return-value]
