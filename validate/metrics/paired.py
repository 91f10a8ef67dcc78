"""Tell whether what two programs differ by on the same images is more than their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Student's t by degrees of freedom from 1: beyond it lie 5 % of both sides together. For more
# degrees the last one is used, which asks a little more than theirs (1.96 to 2.04).
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def is_inconclusive(differences: Sequence[float]) -> bool:
    """Return whether a mean difference of pairs may be chance: a paired t-test at 5 %.

    `differences` has a finite number a pair. One pair alone tells nothing, unless it is 0; pairs
    that are all equal leave no doubt.
    """
    if not any(differences):
        return False
    count = len(differences)
    if count < 2:
        return True
    error = statistics.stdev(differences) / math.sqrt(count)
    return abs(statistics.fmean(differences)) <= T_95[min(count - 1, len(T_95)) - 1] * error
