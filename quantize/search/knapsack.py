"""Solve the integer program of mixed precision: one option an item, least loss within limits.

A multiple-choice knapsack, solved by HiGHS through scipy.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

Table = Sequence[Sequence[float]]
# Relative to the optimum; HiGHS' own 1e-4 would let a larger budget give a worse plan.
GAP = 1e-9
SCALE = 1000.0  # of the optimum, well above the solver's absolute tolerances
INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True, slots=True)
class Limit:
    """Hold what options use up, by item and option, and how much all chosen ones may."""

    amounts: Table
    most: float

    def used(self, chosen: Sequence[int]) -> float:
        return float(sum(row[k] for row, k in zip(self.amounts, chosen, strict=True)))


@dataclass(frozen=True, slots=True)
class EqualChoice:
    """Two items that take these options together, or neither does: (item, option) each."""

    one: tuple[int, int]
    other: tuple[int, int]


def allocate(
    losses: Table, limits: Sequence[Limit], ties: Sequence[EqualChoice] = ()
) -> list[int] | None:
    """Return the option of each item with the least sum of losses.

    None where the limits allow nothing.

    `losses` are not negative; items may differ in their number of options. Limits hold exactly.
    """
    margins = [0.0 for _ in limits]
    while True:
        tight = [replace(m, most=m.most - less) for m, less in zip(limits, margins, strict=True)]
        chosen = solve(losses, tight, ties)
        if chosen is None:
            return None
        over = [limit.used(chosen) - limit.most for limit in limits]
        if max(over, default=0.0) <= 0:
            return chosen
        # The solver keeps limits to a relative 1e-6 or so.
        margins = [
            2 * less + extra if extra > 0 else less
            for less, extra in zip(margins, over, strict=True)
        ]


def least(amounts: Table, ties: Sequence[EqualChoice] = ()) -> float:
    """Return the smallest sum that any choice has."""
    chosen = solve(amounts, (), ties)
    assert chosen is not None  # nothing limits it
    return Limit(amounts, np.inf).used(chosen)


def solve(losses: Table, limits: Sequence[Limit], ties: Sequence[EqualChoice]) -> list[int] | None:
    """Allocate with limits to the solver's tolerance.

    Twice: tolerances are absolute, and losses span many orders. No option that alone loses more
    than a whole plan can be in the best one, so without those the optimum is of order one.
    """
    flat = np.concatenate([np.asarray(row, np.float64) for row in losses])
    first = program(flat / (flat.max() or 1.0), losses, limits, ties)
    if first is None:
        return None
    bound = Limit(losses, np.inf).used(first)
    if bound == 0:
        return first
    return program(np.minimum(flat / bound, 2.0) * SCALE, losses, limits, ties) or first


def program(
    objective: NDArray[np.float64],
    shape: Table,
    limits: Sequence[Limit],
    ties: Sequence[EqualChoice],
) -> list[int] | None:
    """Return the program: one binary variable per option, those of an item sum to one."""
    counts = [len(row) for row in shape]
    starts = np.concatenate([[0], np.cumsum(counts)])
    total = int(starts[-1])
    owner = np.repeat(np.arange(len(counts)), counts)
    one_each = coo_array((np.ones(total), (owner, np.arange(total))), shape=(len(counts), total))
    constraints = [LinearConstraint(one_each.tocsr(), 1, 1)]
    for limit in limits:
        amounts = np.concatenate([np.asarray(row, np.float64) for row in limit.amounts])
        scale = float(np.abs(amounts).max()) or 1.0
        constraints.append(LinearConstraint(amounts[None] / scale, -np.inf, limit.most / scale))
    for tie in ties:
        row = np.zeros((1, total))
        row[0, starts[tie.one[0]] + tie.one[1]] += 1
        row[0, starts[tie.other[0]] + tie.other[1]] -= 1
        constraints.append(LinearConstraint(row, 0, 0))
    with without_prints():
        found = milp(
            objective,
            integrality=np.ones(total),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP},
        )
    if found.status == INFEASIBLE:
        return None
    assert found.x is not None, found.message
    return [int(np.argmax(found.x[a:b])) for a, b in itertools.pairwise(starts)]


@contextlib.contextmanager
def without_prints() -> Iterator[None]:
    """Silence the lines that HiGHS prints for some programs; stdout is for results."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
