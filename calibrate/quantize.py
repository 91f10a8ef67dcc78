"""Plan + statistics -> Q/DQ graphs and packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..artifacts import ActivationFormat, Plan, Site, SiteMap, SitePlan
from ..errors import CalibrationError, RecipeError
from ..recipe import QuantizeOptions
from .formats import QuantizedWeight, quantize_weight
from .observers import ClipCandidate, load_graph
from .packed import save_packed
from .passes import Progress, collect_clip_errors
from .qdq import SiteWeights, initializer_array, insert_qdq
from .scaling import best_candidate, clip_candidates, smoothing_scale
from .statistics import Statistics

GRAPHS = ("encoder", "decoder")
FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of a site: signal-to-noise ratios in dB of its weight and of its input."""

    name: str
    graph: str
    weight: str
    activation: str
    weight_sqnr_db: float | None
    activation_sqnr_db: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that read the same tensor: one smoothing and one grid for all of them."""

    sites: tuple[Site, ...]
    smoothing: NDArray[np.float64] | None
    gain: NDArray[np.float64]
    fold: bool


def quantize_graphs(
    export: Path,
    samples: Path,
    output: Path,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    batch_size: int,
    progress: Progress,
) -> tuple[Plan, list[SiteResult]]:
    """Write encoder.onnx, decoder.onnx and weights.safetensors into `output`.

    Returns the plan with every scale filled in, and what became of each site.
    """
    groups = {graph: group_sites(export, site_map, graph, entries, statistics) for graph in GRAPHS}
    activations, quality = search_activations(
        export,
        samples,
        groups,
        entries,
        statistics,
        options,
        batch_size=batch_size,
        progress=progress,
    )
    results: list[SiteResult] = []
    packed: dict[str, QuantizedWeight] = {}
    floats: dict[str, NDArray[np.generic]] = {}
    final: list[SitePlan] = []
    for graph in GRAPHS:
        model = load_graph(export / f"{graph}.onnx")
        sites = site_map.of_graph(graph)
        chosen: dict[str, SiteWeights] = {}
        smoothing = {s.name: g.smoothing for g in groups[graph] for s in g.sites}
        folded = {s.name: g.fold for g in groups[graph] for s in g.sites}
        for position, site in enumerate(sites):
            entry = entries[site.name]
            site_weights, noise = quantize_site(
                model.graph,
                site,
                entry,
                statistics,
                options,
                activations.get(site.name),
                smoothing.get(site.name),
            )
            if site_weights is not None:
                chosen[site.name] = site_weights
                store(site, site_weights, packed, floats)
            final.append(msgspec.structs.replace(entry, activation=activations.get(site.name)))
            results.append(describe(site, final[-1], noise, quality.get(site.name)))
            progress(f"{graph} weights", position + 1, len(sites))
        floats.update(float_parameters(model.graph, sites))
        kept = [s if folded.get(s.name) else msgspec.structs.replace(s, fold=None) for s in sites]
        insert_qdq(model.graph, kept, chosen)
        ir.save(
            model,
            output / f"{graph}.onnx",
            external_data=f"{graph}.onnx.data",
            size_threshold_bytes=1024,
        )
    save_packed(packed, floats, output / "weights.safetensors")
    return Plan(sites=tuple(final)), results


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
    return np.abs(weight).max(axis=(0, 2, 3)).astype(np.float64)


def input_energy(graph: ir.Graph, site: Site) -> NDArray[np.float64]:
    """sum W^2 by input channel, [I]."""
    weight = site_weight(graph, site)
    return np.einsum("oihw,oihw->i", weight, weight, dtype=np.float64)


def site_statistics(statistics: Statistics, name: str):  # type: ignore[no-untyped-def]
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

    A scale that the plan already has is kept.
    """
    candidates: dict[str, dict[str, list[ClipCandidate]]] = {}
    for graph, members in groups.items():
        for group in members:
            site = group.sites[0]
            wanted = entries[site.name].activation
            assert wanted is not None
            stats = site_statistics(statistics, site.name)
            ones = np.ones_like(group.gain) if group.smoothing is None else group.smoothing
            if wanted.scale is not None:
                grids = [
                    ClipCandidate(ones.astype(np.float32), wanted.scale, wanted.shift, wanted.bits)
                ]
            else:
                grids = clip_candidates(stats, ones, wanted.bits, allow_shift=options.shift)
            candidates.setdefault(graph, {})[site.input] = grids
    if not candidates:
        return {}, {}
    errors = collect_clip_errors(
        export, samples, candidates, batch_size=batch_size, progress=progress
    )
    chosen: dict[str, ActivationFormat] = {}
    quality: dict[str, float] = {}
    for graph, members in groups.items():
        for group in members:
            first = group.sites[0]
            grids = candidates[graph][first.input]
            pairs = errors[f"{graph}/{first.input}"]
            power = options.clip_power
            k = best_candidate([pair[power // 4] for pair in pairs], grids, group.gain, power)
            stats = site_statistics(statistics, first.name)
            ones = np.ones_like(group.gain) if group.smoothing is None else group.smoothing
            signal = float(np.sum(stats.square / ones**2 * group.gain**2))
            noise = float(np.sum(pairs[k][0] * group.gain**2))
            for site in group.sites:
                chosen[site.name] = ActivationFormat(
                    bits=grids[k].bits, scale=grids[k].scale, shift=grids[k].shift
                )
                quality[site.name] = decibel(signal, noise)
    return chosen, quality


def quantize_site(
    graph: ir.Graph,
    site: Site,
    entry: SitePlan,
    statistics: Statistics,
    options: QuantizeOptions,
    activation: ActivationFormat | None,
    smoothing: NDArray[np.float64] | None,
) -> tuple[SiteWeights | None, float | None]:
    """The weights of one site and the SQNR of the quantized weight in dB."""
    if site.weight is None or site.role == "patcher":
        return None, None
    weight = site_weight(graph, site)
    if entry.weight is None:
        return SiteWeights(quantized=None, floating=to_half(weight, site.name)), None
    scale = None if smoothing is None else smoothing.astype(np.float32)
    if scale is not None:
        weight = weight * scale.reshape(1, -1, 1, 1)
    importance = None
    if options.data_aware and entry.weight.granularity == "per_channel":
        stats = site_statistics(statistics, site.name)
        ones = np.ones_like(stats.square) if smoothing is None else smoothing
        importance = stats.square / max(1, stats.count) / ones**2
    quantized = quantize_weight(weight, entry.weight, importance)
    wide = weight.astype(np.float64)
    noise = decibel(
        float(np.sum(wide**2)),
        float(np.sum((quantized.dequantize().astype(np.float64) - wide) ** 2)),
    )
    return SiteWeights(quantized, activation=activation, smoothing=scale), noise


def to_half(weight: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Round to float16, which is how high-precision weights are stored and built."""
    worst = float(np.abs(weight).max())
    if worst > FP16_MAX:
        raise RecipeError(
            f"{name} has a weight of {worst:.3g}, beyond float16",
            do="give it a weight format in the plan",
        )
    return weight.astype(np.float16).astype(np.float32)


def store(
    site: Site,
    weights: SiteWeights,
    packed: dict[str, QuantizedWeight],
    floats: dict[str, NDArray[np.generic]],
) -> None:
    if weights.quantized is not None:
        packed[site.name] = weights.quantized
    if weights.floating is not None:
        floats[f"{site.name}.weight"] = weights.floating.astype(np.float16)
    if weights.smoothing is not None:
        floats[f"{site.name}.smoothing"] = weights.smoothing


def float_parameters(graph: ir.Graph, sites: Sequence[Site]) -> dict[str, NDArray[np.generic]]:
    """Biases and norm parameters: every float initializer named after a parameter, but weights."""
    weights = {site.weight for site in sites}
    return {
        name: initializer_array(value)
        for name, value in graph.initializers.items()
        if name not in weights
        and value.dtype == ir.DataType.FLOAT
        and name.rpartition(".")[2] in ("weight", "bias")
    }


def describe(
    site: Site, entry: SitePlan, weight_db: float | None, activation_db: float | None
) -> SiteResult:
    weight = "float16" if site.weight is not None else "-"
    if entry.weight is not None:
        kind = "INT" if entry.weight.grid == "uniform" else "LOG"
        weight = f"{kind}{entry.weight.bits} {entry.weight.granularity.replace('_', '-')}"
    activation = "float"
    if entry.activation is not None:
        shift = ", shifted" if entry.activation.shift else ""
        activation = f"INT{entry.activation.bits} per-tensor{shift}"
    return SiteResult(
        site.name, site.graph, weight, activation, weight_db, activation_db, entry.reason
    )


def decibel(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / max(noise, 1e-30)))
