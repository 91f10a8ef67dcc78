"""Make a plan from options: which format each site gets, and why some get none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec
import onnx_ir as ir

from ..errors import RecipeError, nearest
from ..graph.linears import site_weight
from ..graph.sites import PRODUCT_ROLES, Site, SiteMap, may_be_planned
from ..numerics.scheme import BLOCK_BITS, ActivationFormat, Plan, SitePlan, WeightFormat
from ..recipe.quantize import FLOAT_BITS, LOG_METHODS, USUAL_BITS, QuantizeOptions

# Their rounded inputs pass the softmax: at the real width of DI8x8 a fifth of the decoder's error,
# for one hundredth of its multiplications.
ATTENTION_ROLES = ("q", "k", "v", "qkv", "proj")
# The grid of an input beside each of a weight; a logarithmic one has none.
ACTIVATION_GRIDS: dict[str, Literal["uniform", "fp8"]] = {
    "uniform": "uniform",
    "fp8": "fp8",
    "log2": "fp8",
}
HALVES = ("encoder", "decoder")  # of a tokenizer
BROKEN = "INT8 breaks the engine's fused attention into two GEMMs and a softmax between them"
BLOCK_REASON = "blocks of 4 bits are for linears: engines expand a convolution's on every run"
MODULATION_REASON = "its input stays in high precision: all rows are scaled by what it makes"
FLOAT_INPUT_REASON = "its input stays in high precision, as the recipe says"
ATTENTION_REASON = "its input stays in high precision: it feeds, or is fed by, the softmax"


def weight_format(
    options: QuantizeOptions, site: Site, decoder: str | None = None
) -> WeightFormat | None:
    given = getattr(options, bits_option(options, site, decoder))
    usual = FLOAT_BITS if site.graph == decoder else USUAL_BITS
    bits = usual if given is None else given
    if bits == FLOAT_BITS:
        return None
    method = options.quantize_method
    if method == "fp8":
        return WeightFormat(bits=8, grid="fp8")
    if method == "blockwise":
        return WeightFormat(bits=BLOCK_BITS, granularity="per_block", block=options.block_size)
    log: Literal["log", "log2"] = "log2" if options.integer_exponents else "log"
    return WeightFormat(
        bits=bits,
        grid=log if method in LOG_METHODS else "uniform",
        granularity="per_channel" if method.startswith("per_channel") else "per_tensor",
    )


def bits_option(options: QuantizeOptions, site: Site, decoder: str | None = None) -> str:
    """Return the option that has the bits of a site's weight.

    Halves of a tokenizer have their own, and so has a generator's image `decoder`.
    """
    if makes_modulation(site) and options.adaln_bits is not None:
        return "adaln_bits"
    if site.graph == decoder:
        return "decoder_bits"
    halved = options.weight_bits is None and site.graph in HALVES
    return f"{site.graph}_bits" if halved else "weight_bits"


def make_plan(site_map: SiteMap, options: QuantizeOptions, *, decoder: str | None = None) -> Plan:
    """Make a plan with one entry per site, in graph order.

    `decoder` is the graph that makes a generator's images, which has bits of its own.

    Raises:
        RecipeError: an exclude pattern that matches nothing, or a plan that quantizes nothing.
    """
    names = [site.name for site in site_map.sites]
    check_patterns("exclude", options.exclude, names)
    check_patterns("include", options.include, names)
    check_patterns("per_tensor", options.per_tensor, names)
    check_patterns("float_inputs", options.float_inputs, names)
    if options.adaln_bits is not None and not any(map(makes_modulation, site_map.sites)):
        raise RecipeError(
            "adaln_bits are of what makes a generator's modulation, and this model has none",
            do="leave adaln_bits (--adaln-bits) out",
        )
    products = [site for site in site_map.sites if site.graph != decoder and is_product(site)]
    if options.attention != "float" and not products:
        raise RecipeError(
            "attention is of products of two activations, and this model has none to quantize",
            do="leave attention (--attention) out",
        )
    plan = Plan(sites=tuple(plan_site(site, options, decoder) for site in site_map.sites))
    if not any(site.weight for site in plan.sites):
        raise RecipeError("0 sites would be quantized", do="check the bits and exclude patterns")
    return plan


def plan_site(site: Site, options: QuantizeOptions, decoder: str | None = None) -> SitePlan:
    reason = site.excluded
    if options.attention != "float" and is_product(site) and site.graph != decoder:
        return plan_product(site, options)
    if matches(site, options.include) and may_be_planned(site):
        reason = None
    if reason is None and matches(site, options.exclude):
        reason = "excluded by --exclude or the recipe"
    chosen = weight_format(options, site, decoder)
    if reason is None and chosen is None:
        reason = f"{bits_option(options, site, decoder)} = {FLOAT_BITS}"
    if reason is None and chosen and chosen.block and site.op == "Conv":
        reason = BLOCK_REASON
    if reason is not None or chosen is None:
        return SitePlan(name=site.name, reason=reason)
    if options.activation_bits == FLOAT_BITS:
        return SitePlan(name=site.name, weight=chosen, rounding=options.rounding)
    if matches(site, options.float_inputs):
        return SitePlan(
            name=site.name, weight=chosen, rounding=options.rounding, reason=FLOAT_INPUT_REASON
        )
    if makes_modulation(site) and options.adaln_bits is not None:
        return SitePlan(
            name=site.name, weight=chosen, rounding=options.rounding, reason=MODULATION_REASON
        )
    in_attention = site.op == "Conv" and site.role in ATTENTION_ROLES
    if in_attention and chosen.grid == "uniform" and not options.attention_inputs:
        return SitePlan(
            name=site.name, weight=chosen, rounding=options.rounding, reason=ATTENTION_REASON
        )
    return SitePlan(
        name=site.name,
        weight=chosen,
        activation=ActivationFormat(
            bits=USUAL_BITS if site.graph == decoder else options.activation_bits,
            grid=ACTIVATION_GRIDS[chosen.grid],
            granularity="per_position" if scales_positions(site, options) else "per_tensor",
        ),
        smoothing=options.smoothing or None,
        rounding=options.rounding,
    )


def scales_positions(site: Site, options: QuantizeOptions) -> bool:
    """Return whether the input gets a scale a position."""
    return options.token_wise and site.knows_positions and not matches(site, options.per_tensor)


def makes_modulation(site: Site) -> bool:
    """Return whether it makes the gains, shifts and gates of an adaLN from the condition."""
    return site.role == "adaln"


def is_product(site: Site) -> bool:
    """Return whether it is one of the two products of an attention."""
    return site.role in PRODUCT_ROLES and site.weight is None


def plan_product(site: Site, options: QuantizeOptions) -> SitePlan:
    if matches(site, options.exclude):
        return SitePlan(name=site.name, reason="excluded by --exclude or the recipe")
    whole = options.attention == "int8"
    chosen = ActivationFormat(
        bits=options.attention_bits or USUAL_BITS, grid="uniform" if whole else "fp8"
    )
    return SitePlan(
        name=site.name, activation=chosen, other=chosen, reason=BROKEN if whole else None
    )


def matches(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(site.name, pattern) for pattern in patterns)


def check_patterns(kind: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"{kind} pattern {pattern!r} matches no site",
                do=f"nearest: {nearest(pattern, names)}; all: sites.json",
            )


def with_float_decoder(plan: Plan, site_map: SiteMap, decoder: str | None) -> Plan:
    """Return a plan that says nothing of a generator's image decoder, which then stays float.

    Plans of earlier versions do not name its sites. One that names some is returned as it is.
    """
    own = [] if decoder is None else [site.name for site in site_map.of_graph(decoder)]
    if {entry.name for entry in plan.sites} & {*own}:
        return plan
    added = (SitePlan(name=name, reason="not in the plan") for name in own)
    return msgspec.structs.replace(plan, sites=(*plan.sites, *added))


def check_plan(plan: Plan, site_map: SiteMap) -> dict[str, SitePlan]:
    """Check a hand-edited plan against the sites; returns its entries by name.

    Raises:
        RecipeError: names the entry at fault.
    """
    by_name = {entry.name: entry for entry in plan.sites}
    known = {site.name: site for site in site_map.sites}
    twice = [name for name, count in Counter(e.name for e in plan.sites).items() if count > 1]
    if twice:
        raise RecipeError(f"{twice[0]} has two entries", where="plan.json", do="remove one")
    for name in sorted(by_name.keys() ^ known.keys()):
        what = "is not a site of this model" if name in by_name else "has no entry"
        raise RecipeError(f"{name} {what}", where="plan.json", do="see export/sites.json")
    if not any(entry.weight for entry in plan.sites):
        raise RecipeError("0 sites would be quantized", where="plan.json", do="give one a weight")
    for name, entry in by_name.items():
        site = known[name]
        if entry.weight is not None and not may_be_planned(site):
            raise RecipeError(
                f"{name} ({site.role}) has no weight to quantize",
                where="plan.json",
                do="set its weight to null",
            )
        if entry.rounding != "nearest" and (entry.weight is None or entry.weight.grid == "fp8"):
            raise RecipeError(
                f"{name} wants {entry.rounding}, but has no weight on a uniform or log grid",
                where="plan.json",
                do='set its rounding to "nearest"',
            )
        if entry.weight is not None and entry.weight.block and site.op == "Conv":
            raise RecipeError(f"{name}: {BLOCK_REASON}", where="plan.json", do="give it 8 bits")
        if is_product(site):
            check_product(entry)
            continue
        if entry.other is not None:
            raise RecipeError(
                f"{name} is no product of two activations, but has formats for both",
                where="plan.json",
                do="set other to null",
            )
        if entry.activation is None:
            continue
        if entry.weight is not None and entry.weight.block:
            raise RecipeError(
                f"{name} has a weight in blocks beside a quantized input, which no engine builds",
                where="plan.json",
                do="leave its input in high precision, or give the weight a scale a channel",
            )
        if entry.weight is None or ACTIVATION_GRIDS.get(entry.weight.grid) != entry.activation.grid:
            raise RecipeError(
                f"{name} quantizes its input, but not its weight on the same kind of grid",
                where="plan.json",
                do="give weight and activation both a uniform or both an fp8 grid",
            )
        if entry.activation.granularity == "per_position" and not site.knows_positions:
            raise RecipeError(
                f"{name} wants a scale a position, but its input has none that are known",
                where="plan.json",
                do='set its granularity to "per_tensor"',
            )
        half = 2 ** (entry.activation.bits - 1)
        if not -half < entry.activation.shift <= half:
            raise RecipeError(
                f"{name} has a shift of {entry.activation.shift} steps, which takes zero off its "
                "grid, and convolutions pad with zero",
                where="plan.json",
                do=f"use a shift from {1 - half} to {half}",
            )
    return by_name


def check_product(entry: SitePlan) -> None:
    """Raises RecipeError for operands of an attention's product that no engine multiplies."""
    both = [f for f in (entry.activation, entry.other) if f is not None]
    if not both:
        return
    plain = all(f.granularity == "per_tensor" and not f.shift and not f.centered for f in both)
    if len(both) < 2 or both[0].grid != both[1].grid or not plain:
        raise RecipeError(
            f"{entry.name} multiplies two activations, which need one kind of grid, per tensor and "
            "without shifts",
            where="plan.json",
            do="give activation and other the same format, or neither",
        )


def require_blocks(graph: ir.Graph, sites: Sequence[Site], entries: Mapping[str, SitePlan]) -> None:
    """Check that blocks cover the input channels of every weight in blocks.

    Raises:
        RecipeError: a weight of another number of input channels.
    """
    odd = []
    for site in sites:
        weight = entries[site.name].weight if site.name in entries else None
        if weight is not None and weight.block is not None:
            channels = site_weight(graph, site).shape[1]
            if channels % weight.block:
                odd.append(f"{site.name} ({channels} input channels, blocks of {weight.block})")
    if odd:
        raise RecipeError(
            f"{len(odd)} sites cannot take their blocks: {', '.join(odd[:5])}",
            do="use a smaller block_size, or exclude them",
        )
