"""List the formats that a search may give each site, and apply a choice of them to a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...calibrate.calibrated import Calibrated
from ...graph.sites import CONSTANT_ROLES, Site
from ...numerics.qparams import QParams
from ...numerics.scheme import BLOCK_BITS, Plan, SitePlan, WeightFormat
from ...recipe.quantize import QuantizeOptions
from ...samples.files import Array, sample_batches, sample_files
from ...workspace.files import open_tensors
from .budget import Form

if TYPE_CHECKING:
    from ...calibrate.statistics import Statistics, TensorStats
    from .sensitivity import PerturbedChain, RoundedInput

REASON = "left in high precision by the search"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SearchItem:
    """Hold a site to search, its plan but for the weight, and candidate formats (None: float)."""

    site: Site
    entry: SitePlan
    forms: tuple[Form, ...]

    @property
    def rounds_input(self) -> bool:
        return self.entry.activation is not None

    def planned(self, form: Form) -> SitePlan:
        if form is None:
            return SitePlan(name=self.site.name, reason=REASON)
        return msgspec.structs.replace(self.entry, weight=form, reason=self.entry.reason)


def search_items(
    source: Calibrated,
    plan: Plan,
    options: QuantizeOptions,
    *,
    bits: Sequence[int],
    grids: Sequence[str],
    all_sites: bool,
) -> list[SearchItem]:
    """Return the sites that `plan` quantizes, with `all_sites` also those left out by rule.

    What the user excludes stays out. A site whose input is rounded has uniform grids alone.
    """
    entries = {entry.name: entry for entry in plan.sites}
    items = []
    for site in source.split[0].calibrated.sites:
        entry = entries[site.name]
        barred = any(fnmatchcase(site.name, pattern) for pattern in options.exclude)
        weighty = site.weight is not None and site.role not in CONSTANT_ROLES
        if entry.weight is None:
            if not (all_sites and weighty and site.excluded is not None and not barred):
                continue
            entry = SitePlan(name=site.name)
        chosen = ("uniform",) if entry.activation is not None else grids
        forms = [form for grid in chosen for form in grid_forms(site, grid, bits, options)]
        items.append(SearchItem(site, entry, (*forms, None)))
    return items


def grid_forms(
    site: Site, grid: str, bits: Sequence[int], options: QuantizeOptions
) -> list[WeightFormat]:
    """Return a grid's formats that a site can have, from the narrowest."""
    if grid != "block":
        kind: Literal["uniform", "log"] = "log" if grid == "log" else "uniform"
        return [WeightFormat(bits=b, grid=kind) for b in sorted(bits)]
    size = options.block_size
    inputs = site.weight_shape[0] if site.op == "MatMul" else 0
    if BLOCK_BITS not in bits or inputs == 0 or inputs % size:
        return []
    return [WeightFormat(bits=BLOCK_BITS, granularity="per_block", block=size)]


def of_width(item: SearchItem, bits: int) -> Form:
    """Return a uniform grid of that width, or the item's first grid."""
    return next(form for form in item.forms if form is not None and form.bits == bits)


def widths(items: Sequence[SearchItem]) -> list[int]:
    return sorted({form.bits for form in items[0].forms if form is not None})


def whole_plan(plan: Plan, items: Sequence[SearchItem], forms: Iterable[Form]) -> Plan:
    """Return `plan` with the searched sites' formats."""
    chosen = {item.site.name: item.planned(form) for item, form in zip(items, forms, strict=True)}
    return Plan(sites=tuple(chosen.get(entry.name, entry) for entry in plan.sites))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Hold how the inputs of sites are rounded: QParams, and the smoothing of the weights."""

    rounded: Mapping[str, RoundedInput] = field(default_factory=dict)
    smoothing: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, plan: Plan, items: Sequence[SearchItem]) -> Inputs:
        """Read them from a quantization of the same sites at some width."""
        from ...calibrate.observers.smoothed import SmoothedInput
        from .sensitivity import RoundedInput

        rounded: dict[str, RoundedInput] = {}
        smoothing: dict[str, Floats] = {}
        entries = {entry.name: entry for entry in plan.sites}
        do = "run `arvg-trt search` again"
        with open_tensors(folder / "weights.safetensors", do=do) as file:
            names = set(file.keys())

            def table(site: Site, kind: str) -> NDArray[np.float64] | None:
                key = f"{site.name}.{kind}"
                return file.get_tensor(key).astype(np.float64) if key in names else None

            for item in (item for item in items if item.rounds_input):
                site, activation = item.site, entries[item.site.name].activation
                if activation is None or activation.scale is None:
                    continue  # quantization left it in high precision: half would overflow
                scale, steps = table(site, "smoothing"), table(site, "token_scale")
                view = SmoothedInput(
                    site.input,
                    site.channel_axis,
                    site.token_axis if steps is not None else None,
                    scale=scale,
                    shift=table(site, "center"),
                )
                qparams = QParams.from_format(activation)
                if steps is not None:
                    shift = table(site, "token_shift")
                    assert shift is not None
                    qparams = QParams.from_shift(steps, shift.astype(np.int64), activation.bits)
                rounded[site.name] = RoundedInput(view, qparams)
                if scale is not None:
                    smoothing[site.name] = scale.astype(np.float32)
        return cls(rounded, smoothing)


class Model:
    """Hold the graphs of a workspace, with weights and inputs that a run may round."""

    def __init__(
        self,
        source: Calibrated,
        items: Sequence[SearchItem],
        inputs: Inputs,
        options: QuantizeOptions,
        samples: int,
    ) -> None:
        from ...calibrate.statistics import load_statistics
        from .sensitivity import PerturbedChain, PerturbedGraph

        self.items = items
        self.options = options
        self.inputs = inputs
        self.statistics: Statistics = load_statistics(source.calibrate / "statistics.safetensors")
        probes = {}
        for graph in source.split[0].graphs:
            weighted = [s for s in source.split[0].of_graph(graph) if s.weight is not None]
            probes[graph] = PerturbedGraph(
                source.export / f"{graph}.onnx",
                [item.site for item in items if item.site.graph == graph],
                inputs.rounded,
                last=weighted[-1] if weighted else None,
            )
        files = sample_files(source.samples)[:samples]
        names = {name for probe in probes.values() for name in probe.session.inputs}
        size = source.batch_size
        self.chain: PerturbedChain = PerturbedChain(
            probes, [arrays for _, arrays in sample_batches(files, size, names)]
        )

    @property
    def graphs(self) -> list[str]:
        """Return the graphs with a searched site, as they run."""
        return [g for g in self.chain.probes if any(i.site.graph == g for i in self.items)]

    def weight(self, item: SearchItem) -> Floats:
        return self.chain.probes[item.site.graph].weight(item.site.name)

    def stats(self, item: SearchItem) -> TensorStats | None:
        return self.statistics.get(item.site.name)

    def smoothing(self, item: SearchItem) -> Floats | None:
        return self.inputs.smoothing.get(item.site.name)

    def rounds_input(self, item: SearchItem) -> bool:
        return item.site.name in self.inputs.rounded

    def own_loss(self, item: SearchItem, weight: Floats) -> float:
        """Return the loss of the site's graph when it computes with this weight, [O, I, ...]."""
        probe = self.chain.probes[item.site.graph]
        return self.chain.own_loss(item.site.graph, probe.feeds({item.site.name: weight}))

    def input_loss(self, item: SearchItem) -> float:
        """Return the loss of the site's graph when its input is rounded, for all that read it."""
        probe = self.chain.probes[item.site.graph]
        return self.chain.own_loss(item.site.graph, probe.feeds({}, [item.site.name]))

    def changes(self, graph: str, forms: Sequence[Form]) -> dict[str, Array]:
        """Return what a graph is fed when its items have these formats."""
        from .losses import rounded_weight

        weights, inputs = {}, []
        for item, form in zip(self.items, forms, strict=True):
            if item.site.graph != graph or form is None:
                continue
            weights[item.site.name] = rounded_weight(
                self.weight(item), form, self.stats(item), self.smoothing(item), self.options
            )
            inputs += [item.site.name] if self.rounds_input(item) else []
        return self.chain.probes[graph].feeds(weights, inputs)

    def end_loss(self, forms: Sequence[Form], graphs: Sequence[str]) -> float:
        """Return the loss of the model with the items of these graphs in the formats."""
        return self.chain.end_loss({graph: self.changes(graph, forms) for graph in graphs})
