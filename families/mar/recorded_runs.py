"""Choose which runs of a MAR's graphs are recorded per image, spread over its trajectory."""

from __future__ import annotations

import numpy as np

from ...runtime.sampling import Sampling
from .spec import DENOISE, PASS

PASSES = 4  # recorded per image
TIMES = 4  # recorded of the diffusion after each of these passes
Runs = list[tuple[str, int]]


def choose_runs(seed: int, number: int, sampling: Sampling) -> Runs:
    """Return which runs of an image are recorded: graphs, and numbers of their runs from 0.

    A pass comes in front of the diffusions behind it.
    """
    assert sampling.iterations is not None and sampling.diffusion_steps is not None
    rng, steps = np.random.default_rng([seed, number]), sampling.diffusion_steps
    runs: Runs = []
    for k in choose_evenly(rng, range(sampling.iterations), PASSES):
        runs.append((PASS, k))
        runs += [(DENOISE, k * steps + t) for t in choose_evenly(rng, range(steps), TIMES)]
    return runs


def choose_evenly(rng: np.random.Generator, numbers: range, count: int) -> list[int]:
    """Return `count` of the numbers, one from each of as many like parts; all if they are fewer."""
    parts = np.array_split(numbers, max(1, min(count, len(numbers))))
    return [int(rng.choice(part)) for part in parts if len(part)]
