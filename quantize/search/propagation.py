"""Graphs in a row: what an error at the end of one costs at the end of all of them.

Losses add up at a graph's own output, before anything is rounded to a code: a tokenizer's latent.
Behind it they do not. A small error moves few tokens, each by a whole code, so that the image's
error grows with the amplitude of the latent's and not with its square. How it grows is measured,
a curve for each graph, and the integer program is solved with the curve's slopes at its own
solution until they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MOST_ROUNDS = 20
# Where the iteration may start: it can end in a local optimum.
STARTS = (1e-2, 0.1, 1.0, 10.0, 100.0)

ChosenT = TypeVar("ChosenT")


@dataclass(frozen=True, slots=True)
class ResponseCurve:
    """End loss by the sum of a graph's own losses: lines between logarithms of the points.

    Points are of plans with only this graph quantized; those without a loss say nothing, and the
    curve does not fall. Beyond them the first and last slope go on; one point makes it a ratio.
    """

    points: tuple[tuple[float, float], ...]

    def lines(self) -> tuple[list[float], list[float]]:
        """Return logarithms of sums and end losses, rising."""
        by_sum: dict[float, float] = {}
        top = 0.0
        for x, y in sorted(self.points):
            if x > 0 and y > 0:
                top = max(top, y)
                by_sum[x] = top
        return [float(np.log(x)) for x in by_sum], [float(np.log(y)) for y in by_sum.values()]

    def power(self, total: float) -> tuple[float, float]:
        """Return the end loss and the exponent of the curve at a sum of losses above 0."""
        x, y = self.lines()
        at = float(np.log(total))
        if not x:
            return total, 1.0
        if len(x) == 1:
            return float(np.exp(y[0] + at - x[0])), 1.0
        k = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
        exponent = (y[k] - y[k - 1]) / (x[k] - x[k - 1])
        return float(np.exp(y[k] + exponent * (at - x[k]))), exponent

    def __call__(self, total: float) -> float:
        return self.power(total)[0] if total > 0 else 0.0

    def slope(self, total: float) -> float:
        """Return what more of the graph's own loss costs at the end."""
        _, y = self.lines()
        if total <= 0:
            return 1.0
        end, exponent = self.power(total)
        return max(exponent, 1e-3 if y else 1.0) * end / total


def balance(
    responses: Mapping[str, ResponseCurve],
    solve: Callable[[Mapping[str, float]], ChosenT],
    sums: Callable[[ChosenT], Mapping[str, float]],
) -> tuple[ChosenT, float]:
    """Return the choice of least predicted end loss, and that loss.

    `solve` gives the best choice for the weights of the graphs' sums, `sums` the sums of a choice.
    """
    best = solve(dict.fromkeys(responses, 1.0))
    least = end_loss(responses, sums(best))
    slopes = {graph: r.slope(sums(best)[graph]) for graph, r in responses.items()}
    if len(responses) == 1:
        return best, least
    first = next(iter(slopes))
    for factor in STARTS:
        weights = {**slopes, first: slopes[first] * factor}
        seen: list[ChosenT] = []
        while len(seen) < MOST_ROUNDS:
            chosen = solve(weights)
            if chosen in seen:
                break
            seen.append(chosen)
            found = sums(chosen)
            if end_loss(responses, found) < least:
                best, least = chosen, end_loss(responses, found)
            weights = {graph: r.slope(found[graph]) for graph, r in responses.items()}
    return best, least


def end_loss(responses: Mapping[str, ResponseCurve], sums: Mapping[str, float]) -> float:
    """Return the predicted loss at the end, where errors of different graphs add up."""
    return sum(response(sums[graph]) for graph, response in responses.items())
