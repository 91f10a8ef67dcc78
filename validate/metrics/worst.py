"""Keep the few worst of many samples while they pass by, so that a report can show them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Generic, TypeVar

from ...errors import AccuracyError

Item = TypeVar("Item")
# The candidates that a report shows beside FP32, the first that is there: what a device executes,
# else the Q/DQ graphs.
SHOWN_FIRST = ("engine", "qdq")


class Worst(Generic[Item]):
    """Hold the `most` items of the least scores; memory does not grow with those that pass by."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        # The heap's first is the best of those kept; of equal scores the one that came last.
        self._heap: list[tuple[float, int, Item]] = []

    def add(self, score: float, item: Item) -> None:
        """Keep an item if its score is among the least; of equal ones those that came first.

        Raises:
            AccuracyError: the score is NaN, which has no place in an order.
        """
        if math.isnan(score):
            raise AccuracyError("a metric of an image is NaN", do="look at the images")
        self._seen += 1
        entry = (-score, -self._seen, item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[Item]:
        """Return what was kept, the least score first."""
        return [item for *_, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def shown_candidate(names: Iterable[str]) -> str | None:
    """Return the candidate whose images stand beside FP32's; None without any."""
    given = list(names)
    return next((name for name in (*SHOWN_FIRST, *given) if name in given), None)
