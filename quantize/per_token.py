"""Decide the channel scales and the QParams of inputs that are rounded with a scale per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..calibrate.calibration_run import CalibrationRun
from ..errors import CalibrationError, RecipeError
from ..numerics.scheme import SitePlan
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from .groups import InputDecision, InputGroup
from .scaling.choose_per_token import scale_groups
from .scaling.fit import round_inputs


@dataclass(frozen=True, slots=True)
class HeldOutError:
    """Chooses channel scales by the error on samples left out, and scales per token.

    Clips are those of least error on all samples, by sums over each token. Second moments stay
    below `max_memory` bytes.
    """

    run: CalibrationRun
    options: QuantizeOptions
    max_memory: int = MAX_MEMORY

    def decide(
        self,
        graphs: Mapping[str, ir.Graph],
        groups: Sequence[InputGroup],
        entries: Mapping[str, SitePlan],
    ) -> tuple[dict[str, SitePlan], dict[str, InputDecision]]:
        """Return the plan as it is, and decisions by each group's key.

        Raises:
            RecipeError: a group that wants scales of least predicted error.
            CalibrationError: statistics of another model.
        """
        for group in groups:
            require_token_group(group)
        found: dict[str, InputDecision] = {}
        for name, graph in graphs.items():
            members = [group for group in groups if group.graph == name]
            found |= decide_groups(
                graph, members, self.run.on(name), self.options, max_memory=self.max_memory
            )
        return dict(entries), found


def require_token_group(group: InputGroup) -> None:
    """Check that a group's statistics and plan are of a generator's linears.

    Raises:
        RecipeError: it wants scales of least predicted error.
        CalibrationError: its statistics have other channels.
    """
    if group.entry.smoothing == "predicted":
        raise RecipeError(
            f"{group.key} wants the scales of least predicted error, which a generator lacks",
            where="plan.json",
            do='use "search", "gps" or an exponent',
        )
    channels = group.sites[0].weight_shape[0]
    if len(group.stats.low) != channels:
        raise CalibrationError(
            f"{group.key} has {channels} input channels, its statistics have "
            f"{len(group.stats.low)}",
            do="run `arvg-trt calibrate` again for this model",
        )


def decide_groups(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    run: CalibrationRun,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> dict[str, InputDecision]:
    """Return scales, shifts and QParams of a graph's groups by each one's key."""
    scalings = scale_groups(graph, groups, run, options, max_memory=max_memory)
    judged = run if options.clip_power != 0 else None
    rounded = round_inputs(groups, scalings, run, judged, options)
    return {
        g.key: InputDecision(
            scalings[g.key],
            rounded[g.key].qparams,
            rounded[g.key].sqnr_db,
            rounded[g.key].channels.mean_square,
            g.divides,
            g.subtracts,
        )
        for g in groups
    }
