"""Q/DQ on the operands of an attention's two products, per tensor, in a finished Q/DQ graph.

    q -> Q -> DQ \\                                p -> Q -> DQ \\
    k -> Q -> DQ -> MatMul -> ... -> Softmax -> p; v -> Q -> DQ -> MatMul

In FP8, with 1/448 as the scale of the softmax, engines keep one fused kernel for a graph of all
positions; that of a step with its cache they split, as var-mini's for sm89. INT8, which the paper
simulates, breaks it into two GEMMs and a softmax that materializes the scores. Which it is in an
engine, its proof says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.smoothed import SmoothedInput
from ...calibrate.statistics import TensorStats
from ...graph.builder import Inserter
from ...graph.io import load_graph
from ...graph.linears import site_node
from ...graph.sites import PRODUCT_ROLES, Site, SiteMap
from ...numerics.clipping import least
from ...numerics.noise import rounding_sqnr_db
from ...numerics.qparams import QParams, dtype_of
from ...numerics.scheme import ActivationFormat, Plan, SitePlan
from ...numerics.weight import FP8_MAX
from ..facts import SiteRow
from ..run import site_row
from ..scaling.fit import one_range
from ..token_qparams import format_candidates
from .nodes import quantize_dequantize

SIDES = ("left", "right")
HEAD_AXIS = 1  # of all operands, [N, H, T, d], [N, H, d, T] and [N, H, T, T]; T may vary by run


@dataclass(frozen=True, slots=True)
class Operand:
    """Hold one side of a product in a calibrated graph, and the plan's format for it."""

    site: Site
    side: str
    tensor: str
    wanted: ActivationFormat
    is_softmax: bool

    @property
    def key(self) -> str:
        return f"{self.site.name}.{self.side}"


def planned_products(sites: Sequence[Site], entries: Mapping[str, SitePlan]) -> list[Site]:
    """Return products of two activations that the plan quantizes."""
    return [s for s in sites if s.role in PRODUCT_ROLES and entries[s.name].activation]


def quantize_attention(
    run: CalibrationRun, site_map: SiteMap, plan: Plan, results: Sequence[SiteRow]
) -> tuple[Plan, list[SiteRow]]:
    """Choose grids on the calibrated Q/DQ graphs of `run`, and put them into all graphs there.

    What quantized linears make is what is rounded here, so this comes last. Returns the plan with
    the scales filled in, and the results with the products' signal-to-noise ratios.
    """
    folder = run.export
    entries = {entry.name: entry for entry in plan.sites}
    sites: list[Site] = []
    grids: dict[str, QParams] = {}
    quality: dict[str, float] = {}
    for name in site_map.graphs:
        own = planned_products(site_map.of_graph(name), entries)
        if not own:
            continue
        graph = load_graph(folder / f"{name}.onnx").graph
        operands = [operand for site in own for operand in operands_of(graph, site, entries)]
        found = choose_grids(operands, run.on(name))
        grids |= found[0]
        quality |= found[1]
        sites += own
    filled = {s.name: with_scales(entries[s.name], s, grids) for s in sites}
    for other in sorted({s.graph for s in site_map.sites if s.name in filled}):
        model = load_graph(folder / f"{other}.onnx")
        for site in site_map.of_graph(other):
            if site.name in filled:
                insert_products(model.graph, site, filled[site.name])
        ir.save(model, folder / f"{other}.onnx")
    by_name = {site.name: site for site in sites}
    told = [
        site_row(by_name[r.name], filled[r.name], None, quality[r.name]) if r.name in filled else r
        for r in results
    ]
    every = tuple(filled.get(entry.name, entry) for entry in plan.sites)
    return msgspec.structs.replace(plan, sites=every), told


def operands_of(graph: ir.Graph, site: Site, entries: Mapping[str, SitePlan]) -> list[Operand]:
    entry, node = entries[site.name], site_node(graph, site)
    found = []
    for side, value, wanted in zip(
        SIDES, node.inputs, (entry.activation, entry.other), strict=True
    ):
        assert value is not None and wanted is not None
        maker = value.producer()
        softmax = maker is not None and maker.op_type == "Softmax"
        found.append(Operand(site, side, str(value.name), wanted, softmax))
    return found


def choose_grids(
    operands: Sequence[Operand], run: CalibrationRun
) -> tuple[dict[str, QParams], dict[str, float]]:
    """Return the best QParams of each operand, and by site the SQNR in dB of the worse one.

    A scale of the plan is kept; the softmax's in FP8 is 1/448, since it ends at 1.
    """
    views = {o.key: SmoothedInput(o.tensor, HEAD_AXIS) for o in operands}
    seen = run.ranges(views)
    candidates = {o.key: operand_grids(o, one_range(seen[o.key])) for o in operands}
    ones = {key: np.ones(len(stats.low)) for key, stats in seen.items()}
    errors = run.clip_errors(views, candidates, ones)
    grids: dict[str, QParams] = {}
    quality: dict[str, float] = {}
    for o in operands:
        squares = errors[o.key][2][:, 0]
        best = int(least(squares))
        grids[o.key] = candidates[o.key][best]
        db = rounding_sqnr_db(float(seen[o.key].square.sum()), float(squares[best]))
        quality[o.site.name] = min(db, quality.get(o.site.name, np.inf))
    return grids, quality


def operand_grids(operand: Operand, ranges: TensorStats) -> list[QParams]:
    wanted = operand.wanted
    scale = wanted.scale
    if scale is None and operand.is_softmax and wanted.grid == "fp8":
        scale = 1 / FP8_MAX
    if scale is not None:
        return [QParams.symmetric(np.array([scale]), wanted.bits, dtype_of(wanted))]
    return format_candidates(ranges, wanted, allow_shift=False)


def with_scales(entry: SitePlan, site: Site, grids: Mapping[str, QParams]) -> SitePlan:
    steps = [float(np.float32(grids[f"{site.name}.{side}"].scale[0])) for side in SIDES]
    assert entry.activation is not None and entry.other is not None
    return msgspec.structs.replace(
        entry,
        activation=msgspec.structs.replace(entry.activation, scale=steps[0]),
        other=msgspec.structs.replace(entry.other, scale=steps[1]),
    )


def insert_products(graph: ir.Graph, site: Site, entry: SitePlan) -> None:
    """Put Q/DQ in front of both operands of one product."""
    node = site_node(graph, site)
    for index, (side, chosen) in enumerate(
        zip(SIDES, (entry.activation, entry.other), strict=True)
    ):
        value = node.inputs[index]
        assert value is not None and chosen is not None
        named = msgspec.structs.replace(site, name=f"{site.name}.{side}")
        chain = Inserter(graph, node, named.name)
        node.replace_input_with(index, quantize_dequantize(chain, named, value, chosen))
