"""Choose by a roofline which sites keep their rounded inputs, until a GPU measures them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import BuildError
from ...graph.sites import Site, SiteMap, by_input
from ...numerics.scheme import Plan, SitePlan
from ...recipe.build import BuildOptions
from ...workspace.workspace import Workspace
from ..formats import is_fp8
from ..roofline.calls import GraphCall
from ..roofline.machine import Machine, ProductFormat, find_machine
from ..roofline.model import model_calls
from ..roofline.predict import WeightCost, predict
from ..roofline.shapes import GraphShapes
from ..tensorrt.engine import own_gpu
from .facts import KeptIfFaster, SpeedRow, nothing_rounded


@dataclass(frozen=True, slots=True)
class Predicted:
    """Hold the seconds of sites that read one tensor, on the target where they gain least."""

    machine: str
    unquantized: float
    quantized: float

    @property
    def ratio(self) -> float:
        return self.unquantized / self.quantized


def predict_faster(
    workspace: Workspace, options: BuildOptions, plan: Plan, site_map: SiteMap
) -> KeptIfFaster | None:
    """Return which sites are predicted to be faster on all targets; None if it is not asked for.

    Raises:
        BuildError: targets whose peaks are not known, or no site with rounded inputs.
    """
    factor, images = options.keep_if_faster, options.max_batch
    if factor is None:
        return None
    assert options.backend == "tensorrt" or options.backend == "tensorrt_rtx"
    machines = [find_machine(each) for each in options.targets or own_gpu(options.backend)]
    calls, graphs = model_calls(workspace, images, options.image_size)
    return choose_by_prediction(calls, graphs, site_map, plan, machines, images, factor)


def choose_by_prediction(
    calls: Sequence[GraphCall],
    graphs: dict[str, GraphShapes],
    site_map: SiteMap,
    plan: Plan,
    machines: Sequence[Machine],
    images: int,
    factor: float,
) -> KeptIfFaster:
    """Return which sites are predicted to gain a factor on every one of the machines.

    Against half precision, or FP32 on a machine without. Products of two activations are not
    predicted, and stay as they are planned.

    Raises:
        BuildError: no site has rounded inputs, or a machine whose peaks in these formats are not
            known.
    """
    entries = {e.name: e for e in plan.sites if e.activation is not None and e.weight is not None}
    if not entries:
        raise nothing_rounded(plan)
    plain: ProductFormat = "fp16" if all("fp16" in each.peaks for each in machines) else "fp32"
    rows: list[SpeedRow] = []
    for name in dict.fromkeys(call.graph for call in calls):
        own = [call for call in calls if call.graph == name]
        sites = [site for site in site_map.of_graph(name) if site.name in entries]
        costs = {m.name: predict(own, graphs, site_map, m, images).sites for m in machines}
        alike: dict[Predicted, list[Sequence[Site]]] = {}
        for group in by_input(sites).values():
            found = list(predictions(group, entries, machines, costs, plain))
            least = min(found, key=lambda each: each.ratio)
            alike.setdefault(least, []).append(group)
        rows += [predicted_row(name, groups, each, factor) for each, groups in alike.items()]
    return KeptIfFaster(
        factor=factor,
        source="predicted",
        machine=", ".join(each.name for each in machines),
        unquantized="fp16" if plain == "fp16" else "fp32",
        rows=tuple(rows),
        is_quantized=any(row.verdict == "kept" for row in rows),
    )


def predictions(
    group: Sequence[Site],
    entries: dict[str, SitePlan],
    machines: Sequence[Machine],
    costs: dict[str, dict[str, WeightCost]],
    plain: ProductFormat,
) -> Iterator[Predicted]:
    """Yield what sites that read one tensor take on each machine, in both formats.

    Raises:
        BuildError: a machine whose peak in one of them is not known.
    """
    wide: ProductFormat = "fp8" if is_fp8(entries[group[0].name]) else "w8a8"
    for machine in machines:
        for form in (plain, wide):
            if form not in machine.peaks:
                raise BuildError(
                    f"its peak in {form} is not known, and nothing can be predicted without",
                    where=machine.name,
                    do="leave keep_if_faster out, or name another target",
                )
        found = [costs[machine.name][site.name].seconds for site in group]
        yield Predicted(
            machine.name,
            1000 * sum(each[plain] for each in found),
            1000 * sum(each[wide] for each in found),
        )


def predicted_row(
    graph: str, groups: Sequence[Sequence[Site]], found: Predicted, factor: float
) -> SpeedRow:
    """Return the row of groups of sites that take as long as each other."""
    return SpeedRow(
        graph=graph,
        sites=tuple(site.name for group in groups for site in group),
        unquantized_ms=len(groups) * found.unquantized,
        quantized_ms=len(groups) * found.quantized,
        ratio=found.ratio,
        verdict="kept" if found.ratio > factor else "removed",
        reason=f"predicted for {found.machine}",
    )
