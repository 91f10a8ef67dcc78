"""Fit a plan to a target: each linear gets the format in which its products take the least time.

Few rows are bandwidth-bound: then a weight's bytes are the time, and a quantized input only costs
accuracy. Many rows are compute-bound: then INT8 and FP8 multiply faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ...errors import RecipeError
from ...graph.sites import Site, SiteMap, by_input
from ...numerics.scheme import BLOCK_BITS, Plan, SitePlan, WeightFormat
from ...recipe.quantize import QuantizeOptions
from ...workspace.workspace import Workspace
from .machine import ProductFormat, find_machine
from .model import predict_model
from .predict import Prediction

# What rounding has to gain: `build --keep-if-faster` measures by the same figure.
WORTH = 1.02
BLOCK = 64
NARROW: Mapping[str, ProductFormat] = {"int8": "w8a16", "int4": "w4a16"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold what sites that share an input get, and why; None: what the plan has."""

    form: ProductFormat
    reason: str | None


def fit_to_target(
    workspace: Workspace, plan: Plan, site_map: SiteMap, options: QuantizeOptions
) -> Plan:
    """Return the plan fitted to the target and batch of the options; unchanged without a target.

    Raises:
        BuildError: an unknown target, or one whose peaks are not known.
        RecipeError: nothing would be quantized there.
    """
    if options.plan_for is None:
        return plan
    machine = find_machine(options.plan_for)
    prediction = predict_model(workspace, machine, options.plan_batch, None)
    fitted = fit_plan(plan, prediction, site_map, options.narrow)
    if not any(entry.weight for entry in fitted.sites):
        raise RecipeError(
            f"rounding gains nothing at any site on {machine.name}",
            where=f"plan_for {options.plan_for}",
            do="ship the unquantized model, or leave plan_for out to save bytes",
        )
    return fitted


def fit_plan(plan: Plan, prediction: Prediction, site_map: SiteMap, narrow: str) -> Plan:
    """Return the plan with weight-only or unquantized linears where that is as fast, and why.

    `narrow` is the type of weight-only weights, int8 or int4. Sites whose inputs are not quantized
    stay as they are, and so do convolutions: engines expand their weights before they multiply.
    """
    entries = {entry.name: entry for entry in plan.sites}
    for graph in site_map.graphs:
        for group in by_input(site_map.of_graph(graph)).values():
            found = [entries[site.name] for site in group if site.name in entries]
            if found and all(site.op != "Conv" for site in group):
                entries |= _fitted(group, found, prediction, NARROW[narrow])
    return msgspec.structs.replace(plan, sites=tuple(entries[each.name] for each in plan.sites))


def _fitted(
    group: Sequence[Site],
    entries: Sequence[SitePlan],
    prediction: Prediction,
    narrow: ProductFormat,
) -> dict[str, SitePlan]:
    quantized = [entry for entry in entries if entry.activation and entry.weight]
    if len(quantized) < len(entries) or any(each.name not in prediction.sites for each in entries):
        return {}
    grids = {entry.weight.grid for entry in quantized if entry.weight}
    wide: ProductFormat = "fp8" if grids == {"fp8"} else "w8a8"
    depth = {site.weight_shape[1] for site in group if len(site.weight_shape) > 1}
    if narrow == "w4a16" and any(channels % BLOCK for channels in depth):
        narrow = "w8a16"
    choice = choose([each.name for each in entries], wide, narrow, prediction)
    if choice.form == wide:
        return {}
    return {entry.name: _changed(entry, choice) for entry in quantized}


def _changed(entry: SitePlan, choice: Choice) -> SitePlan:
    if choice.form not in NARROW.values():
        return SitePlan(name=entry.name, reason=choice.reason)
    weight = (
        WeightFormat(bits=BLOCK_BITS, granularity="per_block", block=BLOCK)
        if choice.form == "w4a16"
        else WeightFormat(bits=8)
    )
    return SitePlan(name=entry.name, weight=weight, rounding=entry.rounding, reason=choice.reason)


def choose(
    sites: Sequence[str], wide: ProductFormat, narrow: ProductFormat, prediction: Prediction
) -> Choice:
    """Return the format of sites that share an input: the most exact one that is as fast.

    A format that the machine does not compute is not chosen, unless it is the plan's own.
    """
    costs = [prediction.sites[name] for name in sites]
    seconds: dict[ProductFormat, float] = {
        form: sum(cost.seconds[form] for cost in costs)
        for form in ("fp16", "fp32", narrow, wide)
        if all(form in cost.seconds for cost in costs)
    }
    plain: ProductFormat = "fp16" if "fp16" in seconds else "fp32"
    if wide not in seconds or plain not in seconds:
        return Choice(wide, None)
    fastest = min(seconds.values())
    rows = f"{min(c.rows[0] for c in costs):,} to {max(c.rows[1] for c in costs):,} rows"
    images = "1 image" if prediction.images == 1 else f"{prediction.images} images"
    where = f"predicted for {prediction.machine.name} at {images} per batch, {rows}"
    if seconds[plain] < fastest * WORTH:
        return Choice(plain, f"{where}: rounding gains less than {WORTH - 1:.0%}")
    if narrow in seconds and seconds[narrow] < fastest * WORTH:
        share = sum(cost.weight_seconds[narrow] for cost in costs) / seconds[narrow]
        return Choice(narrow, f"{where}: bandwidth-bound, {share:.2f} of the time is weights")
    return Choice(wide, None)
