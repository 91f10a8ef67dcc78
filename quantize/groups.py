"""Sites that read one tensor, and so share the scales of its channels and its QParams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.smoothed import Scaling, SmoothedInput, plain_input
from ..calibrate.statistics import POSITION, Statistics, TensorStats
from ..errors import CalibrationError, RecipeError
from ..graph.linears import site_node, site_weight
from ..graph.sites import Site, by_input
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat, SitePlan
from .fold import folds_shift, holds_producer

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Readers:
    """Summarize what the products that read a tensor [N, C, ...] do with its channels.

    `peaks` has for each reader what is largest in magnitude over a kernel's elements, [O, C]: of a
    linear the weight itself, so that none is copied. `energy` [C] is the sum of W^2 over readers,
    outputs and kernel elements; `taps` the kernel size of each reader.
    """

    peaks: tuple[NDArray[np.floating], ...]
    energy: Floats
    taps: tuple[int, ...]

    @property
    def absmax(self) -> Floats:
        """Return max |W| by input channel, [C]."""
        ends = [np.maximum(peak.max(axis=0), -peak.min(axis=0)) for peak in self.peaks]
        largest: Floats = np.max(ends, axis=0).astype(np.float64)
        return largest


@dataclass(frozen=True, slots=True)
class InputGroup:
    """Sites with one quantized input, their plans, and what their weights do with its channels.

    `stats` are of the input, with the zeros that a convolution pads (`padded`), `tokens` of its
    positions (None: one scale for all). `absmax` [C] has max |W| by channel, `energy` [C] the sum
    of W^2, both over all of the sites. `divides` and `subtracts` say whether what makes the input
    takes a scale and a shift per channel for free. A `trial` tells copies apart, of which each is
    scaled in another way.
    """

    sites: tuple[Site, ...]
    entries: Mapping[str, SitePlan]
    stats: TensorStats
    tokens: TensorStats | None
    absmax: Floats
    energy: Floats
    padded: bool
    divides: bool
    subtracts: bool
    trial: str = ""

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def key(self) -> str:
        return f"{self.name}{self.trial}"

    @property
    def graph(self) -> str:
        return self.sites[0].graph

    @property
    def tensor(self) -> str:
        return self.sites[0].input

    @property
    def entry(self) -> SitePlan:
        """Return the plan of the first site, whose smoothing and activation are those of all."""
        return self.entries[self.name]

    @property
    def activation(self) -> ActivationFormat:
        assert self.entry.activation is not None
        return self.entry.activation

    @property
    def bits(self) -> tuple[int, int]:
        """Return the bits of activation and weight."""
        assert self.entry.weight is not None
        return self.activation.bits, self.entry.weight.bits

    @property
    def plain(self) -> SmoothedInput:
        """Return the input before any scaling; tokens are told apart where they have scales."""
        found = plain_input(self.sites[0])
        return found if self.tokens is not None else replace(found, token_axis=None)

    def seen(self, statistics: Statistics) -> TensorStats:
        """Return the ranges of the input in some statistics, with the zeros that are padded."""
        stats = site_statistics(statistics, self.name)
        return with_zero(stats) if self.padded else stats


@dataclass(frozen=True, slots=True)
class InputDecision:
    """Decide a group's input: its channels are scaled, then `qparams` round it.

    `sqnr_db` is that of the rounding, channels weighted as in the product; None where nothing was
    measured. `mean_square` [C] is of the scaled channels (None: not known). `divides` and
    `subtracts` say what the producer takes of the scaling.
    """

    scaling: Scaling
    qparams: QParams
    sqnr_db: float | None
    mean_square: Floats | None
    divides: bool
    subtracts: bool

    @property
    def scale(self) -> Floats:
        """Return the divisor of each channel, [C]."""
        return self.scaling.smoothing

    @property
    def shift(self) -> Floats:
        """Return the shift that is subtracted from each channel after the division, [C]."""
        found = np.zeros(1)
        if self.scaling.center is not None:
            found = self.scaling.center / self.scaling.smoothing
        return np.broadcast_to(found, self.scale.shape)

    def without_fold(self) -> InputDecision:
        """Return the same with a node of its own for each step that the producer took."""
        return replace(self, divides=False, subtracts=False)


def find_groups(
    graph: ir.Graph,
    sites: Sequence[Site],
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
) -> list[InputGroup]:
    """Return the groups of a graph's sites with quantized inputs.

    Raises:
        RecipeError: sites that share an input but not the plan for it.
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
        plans = {site.name: entries[site.name] for site in members}
        require_one_plan(plans)
        stats = site_statistics(statistics, first.name)
        padded = any(is_padded(graph, site) for site in members)
        tokens = None
        if first.knows_positions and wants_tokens(plans[first.name]):
            tokens = site_statistics(statistics, f"{first.name}{POSITION}").filled()
        # What makes the input takes a scale only if every reader of it agrees, and if no zero
        # padding lies between them.
        divides = (
            (first.fold is not None or holds_producer(graph, first))
            and len(first.shares_input_with) + 1 == len(members)
            and all(s.op != "Conv" or s.weight_shape[2:] == (1, 1) for s in members)
            and not padded
        )
        readers = summarize(graph, members)
        groups.append(
            InputGroup(
                tuple(members),
                plans,
                with_zero(stats) if padded else stats,
                tokens,
                readers.absmax,
                readers.energy,
                padded,
                divides,
                divides and folds_shift(first),
            )
        )
    return groups


def require_one_plan(plans: Mapping[str, SitePlan]) -> None:
    """Check that sites with one input agree on how it is scaled and rounded.

    Raises:
        RecipeError: they do not.
    """
    first, *others = plans.values()
    wanted = (first.smoothing, first.activation)
    odd = [plan.name for plan in others if (plan.smoothing, plan.activation) != wanted]
    if odd:
        raise RecipeError(
            f"{first.name} and {odd[0]} read the same tensor but differ in smoothing or activation",
            where="plan.json",
            do="give them the same values",
        )


def wants_tokens(entry: SitePlan) -> bool:
    """Return whether a plan wants a scale per token."""
    return entry.activation is not None and entry.activation.granularity == "per_position"


def with_zero(stats: TensorStats) -> TensorStats:
    """Return statistics whose ranges hold zero."""
    return replace(stats, low=np.minimum(stats.low, 0), high=np.maximum(stats.high, 0))


def is_padded(graph: ir.Graph, site: Site) -> bool:
    """Return whether a convolution pads its input with zeros."""
    node = site_node(graph, site)
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def summarize(graph: ir.Graph, sites: Sequence[Site]) -> Readers:
    """Return peaks and energies of the weights of `sites`; mapped weights stay in their file."""
    peaks, taps, energies = [], [], []
    for site in sites:
        weight = site_weight(graph, site)
        by_tap = weight.reshape(*weight.shape[:2], -1)
        peaks.append(by_tap[..., 0] if by_tap.shape[2] == 1 else np.abs(by_tap).max(axis=2))
        taps.append(by_tap.shape[2])
        energies.append(np.einsum("oit,oit->i", by_tap, by_tap, dtype=np.float64))
    return Readers(tuple(peaks), np.sum(energies, axis=0), tuple(taps))


def site_statistics(statistics: Statistics, name: str) -> TensorStats:
    """Return the statistics of a site's input.

    Raises:
        CalibrationError: there are none.
    """
    if name not in statistics:
        raise CalibrationError(
            f"no statistics for {name}", do="run `arvg-trt calibrate` again for this model"
        )
    return statistics[name]
