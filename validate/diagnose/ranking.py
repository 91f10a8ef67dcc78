"""Rank sites by what raising them gains and costs, and write the plan that raises the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ...graph.sites import Site
from ...numerics.scheme import Plan, SitePlan
from ...quantize.search.budget import form_bytes

FLOAT_BITS, USUAL_BITS = 16, 8
REASON = "raised to high precision by diagnose"
To = Literal["high", "8bit"]
Order = Literal["gain", "gain_per_kib", "gain_per_us"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Hold a site that may be raised: how much relative noise goes, and its bytes more.

    `seconds` are what an image takes longer; None: nothing predicts it.
    """

    site: Site
    entry: SitePlan
    raised: SitePlan
    gone: float
    nbytes: int
    seconds: float | None = None

    @property
    def to(self) -> str:
        return "float16" if self.raised.weight is None else f"{self.raised.weight.bits} bits"


def candidate(
    site: Site, entry: SitePlan, to: To, noise: float, input_noise: float, weight_noise: float
) -> Candidate | None:
    """Return what raising a site takes away of its `noise` at the model's outputs; None: nothing.

    To 8 bits, noise falls by 6 dB a bit, in the proportion of what rounding the input and the
    weight add at the site's own output.
    """
    raised = raised_entry(entry, to)
    if raised == entry:
        return None
    nbytes = 0
    if site.weight is not None:
        nbytes = form_bytes(site, raised.weight, FLOAT_BITS)
        nbytes -= form_bytes(site, entry.weight, FLOAT_BITS)
    gone = noise
    if to == "8bit":
        total = input_noise + weight_noise
        by_input = input_noise / total if total > 0 and math.isfinite(total) else 0.5
        left = by_input * 4.0 ** -(USUAL_BITS - _bits(entry.activation))
        left += (1 - by_input) * 4.0 ** -(USUAL_BITS - _bits(entry.weight))
        gone = noise * (1 - left) if math.isfinite(noise) else noise
    return Candidate(site, entry, raised, gone, nbytes)


def _bits(form: object) -> int:
    return int(getattr(form, "bits", USUAL_BITS))


def raised_entry(entry: SitePlan, to: To) -> SitePlan:
    """Return a plan's entry raised to high precision, or to 8 bits; what has them stays."""
    if to == "high":
        return SitePlan(name=entry.name, reason=REASON)
    weight, activation, other = entry.weight, entry.activation, entry.other
    if weight is not None and weight.bits < USUAL_BITS and weight.grid != "log2":
        weight = msgspec.structs.replace(
            weight, bits=USUAL_BITS, block=None, granularity="per_channel"
        )
    if activation is not None and activation.bits < USUAL_BITS:
        cleared = {"bits": USUAL_BITS, "scale": None, "shift": 0, "centered": False}
        activation = msgspec.structs.replace(activation, **cleared)
        other = other and msgspec.structs.replace(other, **cleared)
    return msgspec.structs.replace(entry, weight=weight, activation=activation, other=other)


def ranked(candidates: Sequence[Candidate], order: Order) -> list[Candidate]:
    """Return candidates, the best first: by noise that goes, or by that for each byte or second.

    What costs none comes first where they count; a site whose time nothing predicts comes last.
    """

    def key(each: Candidate) -> tuple[float, float]:
        if order == "gain":
            return (-each.gone, each.nbytes)
        cost = each.nbytes if order == "gain_per_kib" else each.seconds
        if cost is None:
            return (math.inf, -each.gone)
        return (-each.gone / cost if cost > 0 else -math.inf, -each.gone)

    return sorted(candidates, key=key)


def with_readers(
    chosen: Sequence[Candidate], entries: Mapping[str, SitePlan], sites: Sequence[Site], to: To
) -> dict[str, SitePlan]:
    """Return the raised entries by site, with those of sites that have to share them.

    Sites that read one tensor share its grid: to raise the bits of one input raises it for all.
    """
    found = {each.site.name: each.raised for each in chosen}
    if to == "high":
        return found
    inputs = {(each.site.graph, each.site.input) for each in chosen if each.entry.activation}
    for site in sites:
        entry = entries.get(site.name)
        shared = (site.graph, site.input) in inputs and entry is not None and entry.activation
        if shared and site.name not in found and entry is not None:
            activation = raised_entry(entry, to).activation
            found[site.name] = msgspec.structs.replace(entry, activation=activation)
    return found


def raised_plan(plan: Plan, raised: Mapping[str, SitePlan]) -> Plan:
    """Return a plan with some entries in the place of its own."""
    sites = tuple(raised.get(entry.name, entry) for entry in plan.sites)
    return msgspec.structs.replace(plan, sites=sites)


def leave_one(best: list[Candidate], entries: Mapping[str, SitePlan], to: To) -> list[Candidate]:
    """Return the sites to raise, without the last ones if no weight would stay quantized."""
    weights = {name for name, entry in entries.items() if entry.weight is not None}
    while to == "high" and best and weights <= {each.site.name for each in best}:
        best = best[:-1]
    return best
