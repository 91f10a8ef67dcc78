"""The grid of every quantized input: smoothing, scale and shift, by sites that share a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import Scaling
from ..calibrate.statistics import Statistics, TensorStats
from ..errors import CalibrationError, RecipeError
from ..graph.io import load_graph
from ..graph.linears import site_node, site_weight
from ..graph.sites import Site, SiteMap
from ..numerics.noise import rounding_sqnr_db
from ..numerics.qparams import QParams, input_offset
from ..numerics.scheme import ActivationFormat, SitePlan
from ..numerics.weight import FP8_MAX
from ..recipe.options import QuantizeOptions
from .fold import folds_shift, holds_producer
from .predicted import Readers, Way, best_candidate, clip_candidates

CLIP_POWER = 4  # clips less than the square does


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that read the same tensor: one scaling and one grid for all of them.

    `stats` are those of the tensor, with the zeros that a convolution pads; `gain` [C] is the norm
    of the smoothed weights of each input channel.
    """

    sites: tuple[Site, ...]
    stats: TensorStats
    scaling: Scaling
    gain: NDArray[np.float64]
    fold: bool

    def offset(self, chosen: ActivationFormat) -> NDArray[np.float32]:
        """What is subtracted from the smoothed input in `chosen`, [C]."""
        if self.center is not None:
            return self.center
        return np.full(len(self.stats.low), input_offset(chosen), np.float32)

    @property
    def center(self) -> NDArray[np.float32] | None:
        """The channels' centres in units of the smoothed input, [C]."""
        if self.scaling.center is None:
            return None
        centers: NDArray[np.float64] = self.scaling.center / self.scaling.smoothing
        return centers.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Reading:
    """Sites that read one tensor, and their plans; `padded` if one of them pads it with zeros.

    `fold` says that what makes the tensor takes a scale.
    """

    sites: tuple[Site, ...]
    entries: Mapping[str, SitePlan]
    padded: bool
    fold: bool

    @property
    def key(self) -> str:
        return self.sites[0].name

    @property
    def entry(self) -> SitePlan:
        """Whose smoothing and activation are those of all."""
        return self.entries[self.key]

    @property
    def free_center(self) -> bool:
        """Whether a shift a channel costs nothing."""
        return self.fold and folds_shift(self.sites[0])

    @property
    def bits(self) -> tuple[int, int]:
        """Return the bits of activation and weight."""
        assert self.entry.activation is not None and self.entry.weight is not None
        return self.entry.activation.bits, self.entry.weight.bits

    def seen(self, statistics: Statistics) -> TensorStats:
        """Return the ranges of the tensor, with the zeros that a convolution pads."""
        stats = site_statistics(statistics, self.key)
        if not self.padded:
            return stats
        return replace(stats, low=np.minimum(stats.low, 0), high=np.maximum(stats.high, 0))


def find_readings(
    graph: ir.Graph, sites: Sequence[Site], entries: Mapping[str, SitePlan]
) -> list[Reading]:
    """Sites with quantized inputs by the tensor that they read.

    Raises:
        RecipeError: sites that read one tensor and differ in the plan for it.
    """
    readers: dict[str, list[Site]] = {}
    for site in sites:
        if entries[site.name].activation is not None:
            readers.setdefault(site.input, []).append(site)
    found = []
    for members in readers.values():
        first = members[0]
        entry = entries[first.name]
        if any(
            (entries[s.name].smoothing, entries[s.name].activation)
            != (entry.smoothing, entry.activation)
            for s in members
        ):
            raise RecipeError(
                f"{', '.join(s.name for s in members)} read the same tensor but differ in "
                "smoothing or activation",
                where="plan.json",
                do="give them the same values",
            )
        if entry.smoothing == "gps":
            raise RecipeError(
                f"{entry.name} wants gps, which scales the linears of a generator",
                do='use "search" or an exponent',
            )
        # A norm or linear can absorb the scale only if every reader of it agrees, and if no zero
        # padding lies between them.
        padded = any(is_padded(graph, site) for site in members)
        fold = (
            (first.fold is not None or holds_producer(graph, first))
            and len(first.shares_input_with) + 1 == len(members)
            and all(s.op != "Conv" or s.weight_shape[2:] == (1, 1) for s in members)
            and not padded
        )
        plans = {s.name: entries[s.name] for s in members}
        found.append(Reading(tuple(members), plans, padded, fold))
    return found


def group_sites(
    export: Path,
    site_map: SiteMap,
    graph: str,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    ways: Mapping[str, Way],
) -> list[Group]:
    """Sites with quantized inputs by the tensor they read, with scaling and fold decided.

    `ways` has how inputs are scaled whose plan says "search", by the name of the first site.
    """
    model = load_graph(export / f"{graph}.onnx")
    groups = []
    for reading in find_readings(model.graph, site_map.of_graph(graph), entries):
        stats = reading.seen(statistics)
        users = summarize(model.graph, reading.sites)
        scaling = way_of(reading, ways).fit(stats, users, reading.bits)
        gain = np.sqrt(users.energy) * scaling.smoothing
        groups.append(Group(reading.sites, stats, scaling, gain, reading.fold))
    return groups


def way_of(reading: Reading, ways: Mapping[str, Way]) -> Way:
    """A plan that has a scale also says whether channels are centred."""
    if reading.key in ways:
        return ways[reading.key]
    entry = reading.entry
    assert entry.activation is not None
    assert entry.smoothing != "search" and entry.smoothing != "gps"
    way = Way(entry.smoothing)
    if entry.activation.scale is not None:
        way = replace(way, centered=entry.activation.centered)
    return way


def is_padded(graph: ir.Graph, site: Site) -> bool:
    node = site_node(graph, site)
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def summarize(graph: ir.Graph, sites: Sequence[Site]) -> Readers:
    """Peaks and energies of the weights of `sites`; one weight is in memory at a time."""
    peaks, taps, energies = [], [], []
    for site in sites:
        weight = site_weight(graph, site)
        by_tap = weight.reshape(*weight.shape[:2], -1)
        peaks.append(np.abs(by_tap).max(axis=2))
        taps.append(by_tap.shape[2])
        energies.append(np.einsum("oit,oit->i", by_tap, by_tap, dtype=np.float64))
    return Readers(tuple(peaks), np.sum(energies, axis=0), tuple(taps))


def site_statistics(statistics: Statistics, name: str) -> TensorStats:
    if name not in statistics:
        raise CalibrationError(
            f"no statistics for {name}", do="run `arvg-trt calibrate` again for this model"
        )
    return statistics[name]


def search_activations(
    run: CalibrationRun,
    groups: Mapping[str, Sequence[Group]],
    entries: Mapping[str, SitePlan],
    options: QuantizeOptions,
) -> tuple[dict[str, ActivationFormat], dict[str, float]]:
    """Scale and shift of every quantized input, and its SQNR in dB weighted as in the product.

    A scale that the plan already has is kept. FP8 needs no search: its grid is finest near zero,
    so the scale puts the largest value seen on its largest number.
    """
    chosen: dict[str, ActivationFormat] = {}
    quality: dict[str, float] = {}
    candidates: dict[str, dict[str, list[QParams]]] = {}
    for graph, members in groups.items():
        for group in members:
            grids = candidate_grids(group, entries, options)
            if isinstance(grids, ActivationFormat):
                chosen.update({site.name: grids for site in group.sites})
            else:
                candidates.setdefault(graph, {})[group.sites[0].input] = grids
    if not candidates:
        return chosen, quality
    axes = {
        graph: {group.sites[0].input: group.sites[0].channel_axis for group in members}
        for graph, members in groups.items()
    }
    scalings = {
        graph: {group.sites[0].input: group.scaling for group in members}
        for graph, members in groups.items()
    }
    errors = run.channel_clip_errors(candidates, scalings, axes)
    for graph, members in groups.items():
        for group in members:
            first = group.sites[0]
            if first.name in chosen:
                continue
            pairs = errors[f"{graph}/{first.input}"]
            power = options.clip_power or CLIP_POWER
            k = best_candidate([pair[power // 4] for pair in pairs], group.gain, power)
            grid = candidates[graph][first.input][k]
            signal = float(np.sum(group.stats.square / group.scaling.smoothing**2 * group.gain**2))
            noise = float(np.sum(pairs[k][0] * group.gain**2))
            for site in group.sites:
                chosen[site.name] = grid.as_format(centered=group.scaling.center is not None)
                quality[site.name] = rounding_sqnr_db(signal, noise)
    return chosen, quality


def candidate_grids(
    group: Group,
    entries: Mapping[str, SitePlan],
    options: QuantizeOptions,
) -> ActivationFormat | list[QParams]:
    """What a group may be rounded to; a format where there is nothing to search."""
    first = group.sites[0]
    wanted = entries[first.name].activation
    assert wanted is not None
    stats, scaling = group.stats, group.scaling
    if wanted.grid == "fp8":
        if wanted.scale is not None:
            return wanted
        return fp8_format(stats, scaling)
    if wanted.scale is not None:
        grids = [QParams.from_format(wanted)]
    else:
        grids = clip_candidates(stats, scaling, wanted.bits, allow_shift=options.shift)
    return (
        grids[0].as_format(centered=scaling.center is not None)
        if options.clip_power == 0
        else grids
    )  # the first is not clipped


def fp8_format(stats: TensorStats, scaling: Scaling) -> ActivationFormat:
    """The largest value seen lies on the largest number."""
    reach = float(np.max(np.maximum(-stats.low, stats.high) / scaling.smoothing))
    return ActivationFormat(
        bits=8, grid="fp8", scale=float(np.float32(max(reach, 1e-12) / FP8_MAX))
    )
