"""Sites of a generator's full graph that read one tensor, and so have one scaling and one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..calibrate.observers.smoothed import Floats, SmoothedInput, plain_input
from ..calibrate.statistics import POSITION, Statistics, TensorStats
from ..errors import CalibrationError, RecipeError
from ..graph.sites import Site, by_input
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat, SitePlan
from ..recipe.options import QuantizeOptions
from .fold import folds_shift, holds_producer
from .ranges import site_statistics, summarize
from .token_ranges import format_candidates


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Sites with one input, their plan's common entry, and what their weights do with channels.

    `absmax` [C] has max |W| by channel, `energy` [C] the sum of W^2, both over all of the sites.
    `stats` and `positions` are of the input as it is; `positions` None: one grid for all.
    """

    sites: tuple[Site, ...]
    entry: SitePlan
    absmax: Floats
    energy: Floats
    stats: TensorStats
    positions: TensorStats | None
    divides: bool
    subtracts: bool

    @property
    def key(self) -> str:
        return self.sites[0].name

    @property
    def activation(self) -> ActivationFormat:
        assert self.entry.activation is not None
        return self.entry.activation

    @property
    def view(self) -> SmoothedInput:
        view = plain_input(self.sites[0])
        return view if self.positions is not None else replace(view, token_axis=None)


def token_groups(
    graph: ir.Graph,
    sites: Sequence[Site],
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
) -> list[TokenGroup]:
    """Groups of the full graph's sites with quantized inputs.

    Raises:
        RecipeError: sites that share an input but not the plan for it, or scales of tokenizers.
        CalibrationError: statistics that lack a site, or are of another model.
    """
    chosen = [
        s
        for s in sites
        if s.weight and s.name in entries and entries[s.name].activation is not None
    ]
    groups = []
    for members in by_input(chosen).values():
        first = members[0]
        entry = entries[first.name]
        odd = [s.name for s in members if differs(entries[s.name], entry)]
        if odd:
            raise RecipeError(
                f"{first.name} and {odd[0]} read the same tensor but differ in smoothing or "
                "activation",
                where="plan.json",
                do="give them the same values",
            )
        if entry.smoothing == "predicted":
            raise RecipeError(
                f"{first.name} wants the scales of least predicted error, which a generator lacks",
                where="plan.json",
                do='use "search", "gps" or an exponent',
            )
        stats = site_statistics(statistics, first.name)
        require_channels(first, stats)
        # A producer takes it only if everything that reads its output agrees.
        alone = len(first.shares_input_with) + 1 == len(members)
        divides = alone and holds_producer(graph, first)
        positions = None
        if first.knows_positions and wants_tokens(entry):
            positions = site_statistics(statistics, f"{first.name}{POSITION}").filled()
        readers = summarize(graph, members)
        groups.append(
            TokenGroup(
                tuple(members),
                entry,
                readers.absmax,
                readers.energy,
                stats,
                positions,
                divides,
                divides and folds_shift(first),
            )
        )
    return groups


def allowed_grids(
    group: TokenGroup, ranges: TensorStats, options: QuantizeOptions
) -> list[QParams]:
    """What a group's input may be rounded to: one grid where the plan already has its scale."""
    wanted = group.activation
    if wanted.scale is not None and group.positions is None:
        return [QParams.from_format(wanted)]
    return format_candidates(
        ranges, wanted, allow_shift=options.shift, clip=options.clip_power != 0
    )


def differs(one: SitePlan, other: SitePlan) -> bool:
    return (one.smoothing, one.activation) != (other.smoothing, other.activation)


def wants_tokens(entry: SitePlan) -> bool:
    return entry.activation is not None and entry.activation.granularity == "per_position"


def require_channels(site: Site, stats: TensorStats) -> None:
    channels = site.weight_shape[0]
    if len(stats.low) != channels:
        raise CalibrationError(
            f"{site.name} has {channels} input channels, its statistics have {len(stats.low)}",
            do="run `arvg-trt calibrate` again for this model",
        )
