"""What becomes of the inputs of a generator's sites: channels' scales and shifts, then grids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import Scaling
from ..numerics.noise import rounding_sqnr_db
from ..numerics.qparams import QParams
from ..recipe.options import QuantizeOptions
from .fold import Absorption
from .groups import TokenGroup
from .token_held_out import search_scalings
from .token_scales import Method, RoundedInput, levelled, method_of, round_inputs, scalings_by

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decision:
    """Of a group: what is absorbed, the grid, and the grid's SQNR in dB weighted as in the product.

    The SQNR is None where no clips were compared, and so nothing measured. `energy` [C] is the mean
    square of each channel once that is absorbed.
    """

    absorption: Absorption
    qparams: QParams
    sqnr_db: float | None
    energy: Floats


def decide_groups(
    graph: ir.Graph, groups: Sequence[TokenGroup], run: CalibrationRun, options: QuantizeOptions
) -> dict[str, Decision]:
    """Scales, shifts and grids by the name of each group's first site."""
    scalings = scale_groups(graph, groups, run, options)
    judged = run if options.clip_power != 0 else None
    rounded = round_inputs(groups, scalings, run, judged, options)
    found = {}
    for g in groups:
        scaling, made = scalings[g.key], rounded[g.key]
        shift = np.zeros(1) if scaling.center is None else scaling.center / scaling.smoothing
        found[g.key] = Decision(
            Absorption(
                scaling.smoothing,
                np.broadcast_to(shift, scaling.smoothing.shape),
                g.divides,
                g.subtracts,
            ),
            made.qparams,
            input_sqnr(made),
            made.channels.mean_square,
        )
    return found


def input_sqnr(rounded: RoundedInput) -> float | None:
    """In dB, channels weighted as in the product; None where the noise was not measured."""
    if rounded.noise is None:
        return None
    return rounding_sqnr_db(float(np.sum(rounded.channels.square * rounded.gain**2)), rounded.noise)


def scale_groups(
    graph: ir.Graph, groups: Sequence[TokenGroup], run: CalibrationRun, options: QuantizeOptions
) -> dict[str, Scaling]:
    """By the name of each group's first site, by the method that its plan names."""
    searched = [group for group in groups if group.entry.smoothing == "search"]
    found = search_scalings(graph, searched, run, options) if searched else {}
    named: dict[Method, list[TokenGroup]] = defaultdict(list)
    for group in groups:
        if group.entry.smoothing != "search":
            named[method_of(group.entry)].append(group)
    scaled = [g for method in named if method.scales is not None for g in named[method]]
    seen = levelled(scaled, run)
    for method, members in named.items():
        found |= scalings_by(method, graph, members, seen, run, options)
    return found
