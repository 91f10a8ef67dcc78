"""Split candidate scalings into runs whose weights fit into one changed copy of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...calibrate.calibration_run import CalibrationRun
from ...recipe.quantize import QuantizeOptions
from ..groups import InputGroup
from .predicted import Way
from .trials import Fold, TrialWeights, judged_errors

# Bytes of quantized weights of all candidates in a changed copy of a graph; more take more runs,
# of which each has at least one candidate of one input. A session widens them to floats.
TRIAL_BYTES = 2**28


def parts_of(
    groups: Sequence[InputGroup], ways: Mapping[str, Sequence[Way]]
) -> Iterator[list[InputGroup]]:
    """Yield groups, in their order, whose candidates' weights fit into one copy of a graph."""
    part: list[InputGroup] = []
    size = 0
    for group in groups:
        alone = elements(group) * len(ways[group.key])
        if part and size + alone > TRIAL_BYTES:
            yield part
            part, size = [], 0
        part.append(group)
        size += alone
    if part:
        yield part


def elements(group: InputGroup) -> int:
    return sum(int(np.prod(site.weight_shape)) for site in group.sites)


def judged_in_turn(
    run: CalibrationRun,
    part: Sequence[InputGroup],
    fold: Fold,
    ways: Mapping[str, Sequence[Way]],
    rounded: TrialWeights,
    options: QuantizeOptions,
) -> dict[str, dict[Way, float]]:
    """Return what `judged_errors` does; candidates of one large input take several runs."""
    largest = sum(map(elements, part))
    at_once = max(1, TRIAL_BYTES // max(1, largest))
    most = max(len(ways[group.key]) for group in part)
    if len(part) > 1 or most <= at_once:
        return judged_errors(run, part, fold, ways, rounded, options)
    (group,) = part
    found: dict[Way, float] = {}
    for k in range(0, most, at_once):
        batch = {group.key: ways[group.key][k : k + at_once]}
        found |= judged_errors(run, part, fold, batch, rounded, options)[group.key]
    return {group.key: found}
