"""Predict how long a model's products take on a machine, in each format and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ...graph.sites import SiteMap
from .calls import GraphCall
from .machine import FORMATS, Machine, ProductFormat
from .products import Product, graph_products
from .shapes import GraphShapes

# Bits of a weight, an input and an output. INT4 weights have an FP16 scale each 64 values.
BITS: Mapping[ProductFormat, tuple[float, int, int]] = {
    "fp32": (32, 32, 32),
    "fp16": (16, 16, 16),
    "w8a8": (8, 8, 16),
    "fp8": (8, 8, 16),
    "w8a16": (8, 16, 16),
    "w4a16": (4.25, 16, 16),
}
# Attention takes its operands as they come: in half precision beside every quantized weight.
ATTENTION: Mapping[ProductFormat, ProductFormat] = {"fp32": "fp32"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Hold the seconds that a product's bytes and its operations take; the longer one is its time.

    `weight_bytes` are the part of its bytes that the weight is.
    """

    bytes: float
    weight_bytes: float
    moving: float
    computing: float

    @property
    def seconds(self) -> float:
        return max(self.moving, self.computing)


def product_cost(product: Product, form: ProductFormat, machine: Machine) -> Cost:
    """Return what a product costs where the machine is used to the full (Williams et al., 2009)."""
    if product.weight is None:
        form = ATTENTION.get(form, "fp16" if "fp16" in machine.peaks else "fp32")
    weight, given, made = BITS[form]
    weights = product.weights * weight / 8
    total = weights + product.inputs * given / 8 + product.outputs * made / 8
    return Cost(
        bytes=total,
        weight_bytes=weights,
        moving=total / machine.bandwidth,
        computing=2 * product.multiplications / machine.peaks[form],
    )


class PhaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """Show a graph's runs on shapes of one size: seconds of all of them, by format.

    `rows` are the fewest and the most vectors that a weight of the graph meets. `bandwidth_bound`
    is the share of its time in `form` that moves bytes, and `weights` the share of these that are
    weights.
    """

    graph: str
    axes: dict[str, int]
    runs: int
    rows: tuple[int, int]
    seconds: dict[ProductFormat, float]
    form: ProductFormat
    bandwidth_bound: float
    weights: float


@dataclass(slots=True)
class WeightCost:
    """Sum up what the products with one weight cost in a batch, by format."""

    seconds: dict[ProductFormat, float] = field(default_factory=dict)
    weight_seconds: dict[ProductFormat, float] = field(default_factory=dict)
    rows: tuple[int, int] = (2**62, 0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Hold the predicted seconds of a batch: by phase, and by site."""

    machine: Machine
    images: int
    phases: list[PhaseRow]
    sites: dict[str, WeightCost]

    def total(self, form: ProductFormat) -> float:
        """Return the seconds of a batch where every product has this format."""
        return sum(row.seconds[form] for row in self.phases)


def predict(
    calls: Sequence[GraphCall],
    graphs: Mapping[str, GraphShapes],
    site_map: SiteMap,
    machine: Machine,
    images: int,
) -> Prediction:
    """Return what the calls of a batch cost on a machine in each format that it computes.

    Raises:
        BuildError: the shape of a tensor is not known.
    """
    forms = [form for form in FORMATS if form in machine.peaks]
    phases, costs_of = [], dict[str, WeightCost]()
    for call in calls:
        sites = {site.node: site for site in site_map.of_graph(call.graph)}
        roles = {node: site.role for node, site in sites.items()}
        products = graph_products(graphs[call.graph], dict(call.axes), roles)
        if not products:
            continue
        costs = {
            form: [product_cost(product, form, machine) for product in products] for form in forms
        }
        phases.append(_phase(call, products, costs))
        for form, row in costs.items():
            for product, cost in zip(products, row, strict=True):
                if product.node in sites and product.weight is not None:
                    sums = costs_of.setdefault(sites[product.node].name, WeightCost())
                    _add(sums, product, form, cost, call)
    return Prediction(machine, images, phases, costs_of)


def _add(
    sums: WeightCost, product: Product, form: ProductFormat, cost: Cost, call: GraphCall
) -> None:
    weight_time = min(cost.seconds, cost.moving * cost.weight_bytes / max(cost.bytes, 1))
    sums.seconds[form] = sums.seconds.get(form, 0) + call.runs * cost.seconds
    known = sums.weight_seconds.get(form, 0)
    sums.weight_seconds[form] = known + call.runs * weight_time
    sums.rows = min(sums.rows[0], product.rows), max(sums.rows[1], product.rows)


def _phase(
    call: GraphCall, products: Sequence[Product], costs: Mapping[ProductFormat, Sequence[Cost]]
) -> PhaseRow:
    seconds = {form: call.runs * sum(c.seconds for c in row) for form, row in costs.items()}
    form = min(seconds, key=lambda each: seconds[each])
    row = costs[form]
    bound = [cost for cost in row if cost.moving >= cost.computing]
    moving = sum(cost.bytes for cost in bound)
    rows = [product.rows for product in products if product.weight is not None] or [0]
    return PhaseRow(
        graph=call.graph,
        axes=dict(call.axes),
        runs=call.runs,
        rows=(min(rows), max(rows)),
        seconds=seconds,
        form=form,
        bandwidth_bound=sum(c.seconds for c in bound) / max(sum(c.seconds for c in row), 1e-300),
        weights=sum(cost.weight_bytes for cost in bound) / moving if moving else 0.0,
    )
