"""Compute the Inception score as the ADM evaluator and as torch-fidelity do.

Both take logits without the bias of the last layer; they cut the images into parts in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .logits import log_softmax
from .moments import require_features

ADM_PART = 5000  # images
FIDELITY_PARTS = 10
FIDELITY_SEED = 2020  # of its `rng_seed`, which draws the order of the images


@dataclass(frozen=True, slots=True)
class InceptionScore:
    """Hold the mean and, over N, the standard deviation of the scores of all parts."""

    mean: float
    deviation: float


def adm_inception_score(logits: NDArray[Any]) -> InceptionScore:
    """Return the score of logits [N, K] in parts of 5,000 images, in the order given.

    Raises:
        AccuracyError: no logits, or some that are not finite.
    """
    require_features(logits, None)
    starts = range(0, len(logits), ADM_PART)
    return score([logits[start : start + ADM_PART] for start in starts])


def fidelity_inception_score(logits: NDArray[Any]) -> InceptionScore | None:
    """Return the score of logits [N, K] in ten parts of images in a drawn order.

    None for fewer than ten images, which do not fill the parts.

    Raises:
        AccuracyError: no logits, or some that are not finite.
    """
    require_features(logits, None)
    count = len(logits)
    if count < FIDELITY_PARTS:
        return None
    drawn = logits[np.random.RandomState(FIDELITY_SEED).permutation(count)]
    cuts = [k * count // FIDELITY_PARTS for k in range(FIDELITY_PARTS + 1)]
    return score([drawn[a:b] for a, b in pairwise(cuts)])


def score(parts: Sequence[NDArray[Any]]) -> InceptionScore:
    """Return exp of the mean divergence of each image's classes from those of its whole part."""
    found = []
    for part in parts:
        log_p = log_softmax(part.astype(np.float64))
        p = np.exp(log_p)
        mean = p.mean(axis=0)
        # A class that no image can be has the logarithm of 0, and counts 0 times that.
        with np.errstate(divide="ignore"):
            log_mean = np.where(mean > 0, np.log(mean), 0.0)
        found.append(math.exp(float(np.sum(p * (log_p - log_mean), axis=1).mean())))
    return InceptionScore(float(np.mean(found)), float(np.std(found)))
