"""Make a plan from options: which format each site gets, and why some get none."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from ..artifacts import ActivationFormat, Plan, Site, SiteMap, SitePlan, WeightFormat
from ..errors import RecipeError

QuantizeMethod = Literal["per_tensor", "log_quantization", "per_channel", "per_channel_log"]
FLOAT_BITS = 32


class QuantizeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe or the command line asks for.

    Bits are 2 to 8, or 32 to leave a half (or all activations) in high precision. `smoothing` is
    the SmoothQuant exponent, 0 turns it off. Clips minimise sum |error|^clip_power: 2 is the
    squared error; 4 clips less, which keeps convolutional decoders and encoders closer to FP32.
    `exclude` holds patterns of site names.
    """

    encoder_bits: int = 8
    decoder_bits: int = 8
    quantize_method: QuantizeMethod = "per_channel"
    activation_bits: int = 8
    smoothing: float = 0.5
    shift: bool = True
    clip_power: Literal[2, 4] = 4
    data_aware: bool = True
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("encoder_bits", "decoder_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits != FLOAT_BITS and not 2 <= bits <= 8:
                raise ValueError(f"{name} must be 2 to 8, or 32 for high precision; got {bits}")
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be between 0 and 1, got {self.smoothing}")
        if self.activation_bits != FLOAT_BITS and self.quantize_method.endswith(("log_quantization", "_log")):
            raise ValueError(
                "a logarithmic weight grid has no integer product: set activation_bits = 32"
            )
        if self.activation_bits != FLOAT_BITS and self.quantize_method == "per_tensor":
            raise ValueError(
                "per_tensor is a weight-only method: set activation_bits = 32, or use per_channel"
            )


def weight_format(options: QuantizeOptions, graph: str) -> WeightFormat | None:
    bits = options.encoder_bits if graph == "encoder" else options.decoder_bits
    if bits == FLOAT_BITS:
        return None
    method = options.quantize_method
    return WeightFormat(
        bits=bits,
        grid="log" if method in ("log_quantization", "per_channel_log") else "uniform",
        granularity="per_channel" if method.startswith("per_channel") else "per_tensor",
    )


def make_plan(site_map: SiteMap, options: QuantizeOptions) -> Plan:
    """One entry per site, in graph order.

    Raises:
        RecipeError: an exclude pattern that matches nothing, or a plan that quantizes nothing.
    """
    check_patterns(options.exclude, [site.name for site in site_map.sites])
    plan = Plan(sites=tuple(plan_site(site, options) for site in site_map.sites))
    if not any(site.weight for site in plan.sites):
        raise RecipeError("0 sites would be quantized", do="check the bits and exclude patterns")
    return plan


def plan_site(site: Site, options: QuantizeOptions) -> SitePlan:
    reason = site.excluded
    if reason is None and any(fnmatchcase(site.name, p) for p in options.exclude):
        reason = "excluded by the recipe"
    chosen = weight_format(options, site.graph)
    if reason is None and chosen is None:
        reason = f"{site.graph}_bits = {FLOAT_BITS}"
    if reason is not None or chosen is None:
        return SitePlan(name=site.name, reason=reason)
    if options.activation_bits == FLOAT_BITS:
        return SitePlan(name=site.name, weight=chosen)
    return SitePlan(
        name=site.name,
        weight=chosen,
        activation=ActivationFormat(bits=options.activation_bits),
        smoothing=options.smoothing or None,
    )


def check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            raise RecipeError(
                f"exclude pattern {pattern!r} matches no site",
                do=f"nearest: {', '.join(near)}" if near else "see sites.json for the names",
            )


def check_plan(plan: Plan, site_map: SiteMap) -> dict[str, SitePlan]:
    """A hand-edited plan against the sites: by name, complete, and only what a graph can hold.

    Raises:
        RecipeError: names the entry at fault.
    """
    by_name = {entry.name: entry for entry in plan.sites}
    known = {site.name: site for site in site_map.sites}
    if len(by_name) < len(plan.sites):
        raise RecipeError("a site has two entries", where="plan.json", do="remove one")
    for name in by_name.keys() ^ known.keys():
        what = "is not a site of this model" if name in by_name else "has no entry"
        raise RecipeError(f"{name} {what}", where="plan.json", do="see export/sites.json")
    for name, entry in by_name.items():
        site = known[name]
        if entry.weight is not None and (site.weight is None or site.role == "patcher"):
            raise RecipeError(
                f"{name} ({site.role}) has no weight to quantize",
                where="plan.json",
                do="set its weight to null",
            )
        if entry.activation is None:
            continue
        if entry.weight is None or entry.weight.grid == "log":
            raise RecipeError(
                f"{name} quantizes its input but not its weight on a uniform grid",
                where="plan.json",
                do="give it a uniform weight format, or set activation to null",
            )
    return by_name
