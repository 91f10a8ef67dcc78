"""Prove from the builder's layer list what an engine computes, site by site and in shares.

Needs no GPU, and says nothing about speed. A site that is not what was planned comes with what was
found in its place, and with a rule if one is known that keeps it from being so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import BuildError
from ..facts import EngineProof
from ..site_names import grouped_names
from .inspect import KernelFormat, Layer, verify_sites
from .products import Product, Products, WeightKind
from .targets import Format, Target

DATATYPES: Mapping[WeightKind, str] = {"int8": "Int8", "int4": "Int4", "fp8": "FP8", "fp4": "FP4"}
TITLES = {
    **{"Int8": "INT8", "Int4": "INT4", "Half": "FP16", "Float": "FP32"},
    **{"BFloat16": "BF16", "FP8": "FP8", "FP4": "FP4"},
}
GEMMS = ("gemm", "correlation", "deconv")
# A kernel is named by its steps; these compute nothing.
CONVERSION = re.compile(r"__myl_(Cast|Conc|Move|Repl|Resh|Slic|Tran)+_myl\d")
REFORMAT = re.compile(r"(?i)reformat|copy")  # of TensorRT proper
NOT_LISTED = "not in the layer list"


@dataclass(frozen=True, slots=True)
class Planned:
    """Name a site and the node that it is, with what was planned for its inputs or weight alone."""

    site: str
    node: str
    op: str
    inputs: KernelFormat | None
    weight: WeightKind | None


@dataclass(frozen=True, slots=True)
class Missing:
    """Name a site that is not what was planned, what it is, and the rule that foretold it."""

    site: str
    found: str
    rule: str | None

    @property
    def reason(self) -> str:
        return self.found if self.rule is None else f"{self.found} ({self.rule})"


def missing_sites(
    layers: Sequence[Layer], planned: Sequence[Planned], products: Products, group: Sequence[Target]
) -> list[Missing]:
    """Return the sites that are not what was planned, in the order of the plan."""
    described = {product.node: product for product in products.products}
    wanted = {each.node: each.inputs for each in planned if each.inputs is not None}
    _, unproved = verify_sites(layers, wanted)
    found = dict(unproved)
    for each in planned:
        if each.inputs is None and each.weight is not None:
            reason = _weight_problem(layers, described[each.node])
            if reason is not None:
                found[each.node] = reason
    return [
        Missing(each.site, found[each.node], _rule(each, group))
        for each in planned
        if each.node in found
    ]


def _weight_problem(layers: Sequence[Layer], product: Product) -> str | None:
    """Return what became of a weight that was to keep its bits; None if it does.

    A convolution's is expanded by a kernel on each run, which is known of engines.
    """
    assert product.weight is not None
    datatype = DATATYPES[product.weight]
    holders = [layer for layer in layers if datatype in layer.constants]
    # A kernel that only expands weights reads no other input, and may carry the name all the same.
    if any(product.node in layer.onnx_nodes and layer.inputs for layer in holders):
        return None
    held = any({product.dequantize, product.node} & {*layer.onnx_nodes} for layer in holders)
    if held and product.op in ("Conv", "ConvTranspose"):
        return None
    title = TITLES[datatype]
    if held:
        return f"a kernel of its own expands the {title} weight on each run"
    if not any(product.node in layer.onnx_nodes for layer in layers):
        return "is not in the engine's layer list"
    return f"the {title} weight was expanded at the build"


def _rule(planned: Planned, group: Sequence[Target]) -> str | None:
    """Return why a site could not be as planned, if that is known of a target of the group."""
    form: Format
    if planned.inputs == "int8" and planned.op == "Conv":
        form, what = "int8_conv", "no INT8 convolution kernel"
    elif planned.inputs is None and planned.weight == "int8":
        form, what = "int8_weights", "no kernel for INT8 weights beside a batch of float inputs"
    else:
        return None
    lacking = [target.sm for target in group if not target.supports(form)]
    return f"{', '.join(lacking)} has {what}" if lacking else None


def require_proof(graph: str, missing: Collection[Missing]) -> None:
    """Refuse an engine with sites that are not what was planned, but for those known by rule.

    Raises:
        BuildError: names all of them, with what was found.
    """
    by_reason: dict[str, list[str]] = {}
    for each in missing:
        if each.rule is None:
            by_reason.setdefault(each.found, []).append(each.site)
    if not by_reason:
        return
    count = sum(map(len, by_reason.values()))
    texts = "; ".join(f"{grouped_names(sites)}: {why}" for why, sites in by_reason.items())
    raise BuildError(
        f"{count} site{'s are' if count > 1 else ' is'} not what was planned: {texts}",
        where=f"{graph}.engine",
        do="quantize again with --exclude for them, or build with --allow-unproved",
    )


def digest(
    layers: Sequence[Layer],
    products: Products,
    planned: Iterable[Planned],
    missing: Iterable[Missing],
) -> EngineProof:
    """Return what an engine computes in; `layers` is not empty."""
    carriers: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in dict.fromkeys(layer.onnx_nodes):
            carriers.setdefault(node, []).append(layer)
    macs: dict[str, int] = {}
    for product in products.products:
        if product.macs is not None:
            kind = computed_in(carriers.get(product.node, ()))
            macs[kind] = macs.get(kind, 0) + product.macs
    total = sum(macs.values())
    weights = [each.site for each in planned if each.inputs is None and each.weight is not None]
    unproved = {each.site for each in missing}
    constants = {name: size for layer in layers for name, size in layer.constant_bytes.items()}
    held: dict[str, int] = {}
    for name, size in constants.items():
        kind = TITLES.get(name.split()[0], name.split()[0])
        held[kind] = held.get(kind, 0) + size
    kernels = [layer for layer in layers if layer.type not in ("shape_call", "signal", "wait")]
    return EngineProof(
        macs=total,
        shares={kind: count / total for kind, count in sorted(macs.items()) if count},
        uncounted=tuple(p.node for p in products.products if p.macs is None),
        weight_sites_planned=len(weights),
        weight_sites_proved=sum(site not in unproved for site in weights),
        constant_bytes=dict(sorted(held.items())),
        attentions=len(products.attentions),
        split_attentions=tuple(
            softmax
            for softmax in products.attentions
            if not any(layer.is_attention for layer in carriers.get(softmax, ()))
        ),
        kernels=len(kernels),
        conversions=sum(map(only_converts, kernels)),
    )


def computed_in(carriers: Sequence[Layer]) -> str:
    """Return what a product is computed in, by the layers that carry its name.

    Kernels behind a product carry its name too, as epilogues of convolutions do.
    """
    gemms = [layer for layer in carriers if layer.type in GEMMS]
    fused = [layer for layer in carriers if layer.type == "runtime_fusion"]
    attention = [layer for layer in carriers if layer.is_attention]
    layer = next(iter((*gemms, *fused, *attention, *carriers)), None)
    if layer is None:
        return NOT_LISTED
    # A kernel that also looks something up reads integers first.
    first = next((TITLES[k] for k in (*layer.inputs, *layer.outputs) if k in TITLES), NOT_LISTED)
    packed = [TITLES[kind] for kind in layer.constants if kind in DATATYPES.values()]
    if packed and first in ("FP16", "BF16", "FP32"):
        return f"{packed[0]} weights"
    return first


def only_converts(layer: Layer) -> bool:
    """Return whether a kernel computes nothing: it converts types, or moves data."""
    return bool(CONVERSION.match(layer.name) or REFORMAT.search(layer.type))
