"""Compute exact intervals of shares whose trials come in groups, such as the tokens of images."""

from __future__ import annotations

import numpy as np

from .sampled import Floats


def share_interval(hits: Floats, trials: Floats, level: float) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson, for as many trials as the groups are worth.

    `hits` and `trials` are [N], a number a group, N >= 2. Tokens of one image go wrong together, so
    that they tell less than as many tokens of as many images. Korn and Graubard (1998) put the
    effective number p (1 - p) / var(p) in place of all trials, less where there are few groups,
    with the variance between groups. Where none or all are hits that variance is unknown, and
    all trials count; so they do where each group is a single trial.
    """
    from scipy import stats

    count, every = len(trials), float(trials.sum())
    found = float(hits.sum()) / every
    deviations = (hits - found * trials) * count / every
    variance = float(np.square(deviations).sum()) / (count * (count - 1))
    worth = every
    if variance > 0 and trials.max() > 1:
        tail = (1 + level) / 2
        fewer = stats.t.ppf(tail, max(1.0, every - 1)) / stats.t.ppf(tail, count - 1)
        worth = min(every, found * (1 - found) / variance * float(fewer) ** 2)
    below, alpha = found * worth, 1 - level
    low = stats.beta.ppf(alpha / 2, below, worth - below + 1) if below > 0 else 0.0
    high = stats.beta.ppf(1 - alpha / 2, below + 1, worth - below) if below < worth else 1.0
    return float(low), float(high)
