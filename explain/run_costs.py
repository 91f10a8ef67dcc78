"""Estimate what a first run takes, from runs that were measured: `run_costs.json`.

`python -m arvg_trt.benchmarks.run_cost` makes that file. Times are of two cores; another machine
and other options change them, so that an estimate says which run it comes from.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import msgspec

from ..families.variants import find_model
from ..recipe.recipe import Recipe
from ..workspace.times import Took

COSTS = Path(__file__).with_name("run_costs.json")
FURTHEST = 8  # times as many parameters, or as few: beyond it nothing is said
LIBRARIES = 400_000_000  # bytes of Python and its libraries, which do not grow with a model


class RunCost(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the stages of one run took, by stage, and where it was measured.

    `samples` are those of its calibration, and `machine` its processor.
    """

    model: str
    preset: str
    samples: int
    machine: str
    measured_on: str
    stages: dict[str, Took]


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a stage is expected to take, and the model and machine whose run says so."""

    seconds: float
    memory: int | None
    disk: int
    like: str
    machine: str


@cache
def measured_runs() -> tuple[RunCost, ...]:
    """Return the runs that were measured."""
    return msgspec.json.decode(COSTS.read_bytes(), type=tuple[RunCost, ...])


def expected(recipe: Recipe, stage: str) -> Expected | None:
    """Return what a stage is expected to take; None where no run of that kind was measured.

    Figures of the model of the same family that is nearest in size are scaled by the parameters,
    the seconds of a calibration also by its samples.
    """
    entry = find_model(recipe.model)
    if not entry.parameters:
        return None  # of any size, or the user's own graphs
    nearest, apart = None, math.log(FURTHEST)
    for run in measured_runs():
        other = find_model(run.model)
        distance = abs(math.log(entry.parameters / other.parameters))
        if other.family == entry.family and distance <= apart and stage in run.stages:
            nearest, apart = run, distance
    if nearest is None:
        return None
    took, scale = nearest.stages[stage], entry.parameters / find_model(nearest.model).parameters
    more = recipe.calibrate.count / nearest.samples if stage == "calibrate" else 1.0
    return Expected(
        seconds=took.seconds * scale * more,
        memory=None if took.memory is None else scaled_memory(took.memory, scale),
        disk=round(took.bytes * scale),
        like=nearest.model,
        machine=nearest.machine,
    )


def scaled_memory(memory: int, scale: float) -> int:
    """Return the memory for weights that are `scale` times as many."""
    return min(memory, LIBRARIES) + round(max(0, memory - LIBRARIES) * scale)
