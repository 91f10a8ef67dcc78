"""The grid of every quantized input: smoothing, scale and shift, by sites that share a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..artifacts import ActivationFormat, Site, SiteMap, SitePlan
from ..errors import CalibrationError, RecipeError
from ..recipe import QuantizeOptions
from .formats import FP8_MAX
from .observers import ClipCandidate, load_graph
from .passes import Progress, collect_clip_errors
from .qdq import initializer_array
from .scaling import best_candidate, clip_candidates, smoothing_scale
from .statistics import Statistics, TensorStats


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that read the same tensor: one smoothing and one grid for all of them."""

    sites: tuple[Site, ...]
    smoothing: NDArray[np.float64] | None
    gain: NDArray[np.float64]
    fold: bool

    @property
    def divisor(self) -> NDArray[np.float64]:
        """What each channel [C] of the input is divided by."""
        return np.ones_like(self.gain) if self.smoothing is None else self.smoothing


def group_sites(
    export: Path,
    site_map: SiteMap,
    graph: str,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
) -> list[Group]:
    """Sites with quantized inputs by the tensor they read, with smoothing and fold decided."""
    model = load_graph(export / f"{graph}.onnx")
    readers: dict[str, list[Site]] = {}
    for site in site_map.of_graph(graph):
        if entries[site.name].activation is not None:
            readers.setdefault(site.input, []).append(site)
    groups = []
    for sites in readers.values():
        alphas = {entries[s.name].smoothing for s in sites}
        bits = {entries[s.name].activation.bits for s in sites}  # type: ignore[union-attr]
        if len(alphas) > 1 or len(bits) > 1:
            raise RecipeError(
                f"{', '.join(s.name for s in sites)} read the same tensor but differ in "
                "smoothing or activation bits",
                where="plan.json",
                do="give them the same values",
            )
        stats = site_statistics(statistics, sites[0].name)
        # Views on the mapped file: a copy is made one site at a time.
        absmax = np.max([input_absmax(model.graph, s) for s in sites], axis=0)
        alpha = alphas.pop()
        smoothing = None if alpha is None else smoothing_scale(stats, absmax, alpha)
        ones = np.ones_like(absmax) if smoothing is None else smoothing
        gain = np.sqrt(sum(input_energy(model.graph, s) for s in sites)) * ones
        # A norm's affine can absorb the scale only if every reader of the norm agrees to it,
        # and if no zero padding lies between them.
        first = sites[0]
        foldable = (
            first.fold is not None
            and len(first.shares_input_with) + 1 == len(sites)
            and all(s.weight_shape[2:] == (1, 1) for s in sites)
        )
        groups.append(Group(tuple(sites), smoothing, gain, foldable))
    return groups


def site_weight(graph: ir.Graph, site: Site) -> NDArray[np.float32]:
    assert site.weight is not None
    return initializer_array(graph.initializers[site.weight]).astype(np.float32, copy=False)


def input_absmax(graph: ir.Graph, site: Site) -> NDArray[np.float64]:
    """max |W| by input channel, [I]."""
    weight = site_weight(graph, site)
    absmax: NDArray[np.float64] = np.abs(weight).max(axis=(0, 2, 3)).astype(np.float64)
    return absmax


def input_energy(graph: ir.Graph, site: Site) -> NDArray[np.float64]:
    """sum W^2 by input channel, [I]."""
    weight = site_weight(graph, site)
    energy: NDArray[np.float64] = np.einsum("oihw,oihw->i", weight, weight, dtype=np.float64)
    return energy


def site_statistics(statistics: Statistics, name: str) -> TensorStats:
    if name not in statistics:
        raise CalibrationError(
            f"no statistics for {name}", do="run `arvg-trt calibrate` again for this model"
        )
    return statistics[name]


def search_activations(
    export: Path,
    samples: Path,
    groups: Mapping[str, Sequence[Group]],
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    batch_size: int,
    progress: Progress,
) -> tuple[dict[str, ActivationFormat], dict[str, float]]:
    """Scale and shift of every quantized input, and its SQNR in dB weighted as in the product.

    A scale that the plan already has is kept. FP8 needs no search: its grid is finest near zero,
    so the scale puts the largest value seen on its largest number.
    """
    chosen: dict[str, ActivationFormat] = {}
    quality: dict[str, float] = {}
    candidates: dict[str, dict[str, list[ClipCandidate]]] = {}
    for graph, members in groups.items():
        for group in members:
            grids = candidate_grids(group, entries, statistics, options)
            if isinstance(grids, ActivationFormat):
                chosen.update({site.name: grids for site in group.sites})
            else:
                candidates.setdefault(graph, {})[group.sites[0].input] = grids
    if not candidates:
        return chosen, quality
    errors = collect_clip_errors(
        export, samples, candidates, batch_size=batch_size, progress=progress
    )
    for graph, members in groups.items():
        for group in members:
            first = group.sites[0]
            if first.name in chosen:
                continue
            pairs = errors[f"{graph}/{first.input}"]
            power = options.clip_power
            k = best_candidate([pair[power // 4] for pair in pairs], group.gain, power)
            grid = candidates[graph][first.input][k]
            stats = site_statistics(statistics, first.name)
            signal = float(np.sum(stats.square / group.divisor**2 * group.gain**2))
            noise = float(np.sum(pairs[k][0] * group.gain**2))
            for site in group.sites:
                chosen[site.name] = ActivationFormat(
                    bits=grid.bits, scale=grid.scale, shift=grid.shift
                )
                quality[site.name] = decibel(signal, noise)
    return chosen, quality


def candidate_grids(
    group: Group,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
) -> ActivationFormat | list[ClipCandidate]:
    """What a group may be rounded to; a format where there is nothing to search."""
    first = group.sites[0]
    wanted = entries[first.name].activation
    assert wanted is not None
    stats = site_statistics(statistics, first.name)
    divisor = group.divisor
    if wanted.grid == "fp8":
        if wanted.scale is not None:
            return wanted
        reach = float(np.max(np.maximum(-stats.low, stats.high) / divisor))
        return ActivationFormat(
            bits=8, grid="fp8", scale=float(np.float32(max(reach, 1e-12) / FP8_MAX))
        )
    if wanted.scale is not None:
        kept = ClipCandidate(divisor.astype(np.float32), wanted.scale, wanted.shift, wanted.bits)
        return [kept]
    return clip_candidates(stats, divisor, wanted.bits, allow_shift=options.shift)


def decibel(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / max(noise, 1e-30)))
