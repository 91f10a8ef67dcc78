"""The site map (what can be quantized, and where a scale goes for free) and the plan (how it is).

Both are JSON that a stage leaves in a workspace; a plan may be edited by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

Smoothing = float | Literal["search", "gps"]
Rounding = Literal["nearest", "gptq"]

# Roles of products with constants that are no weights: Haar filters, the codes that a nearest one
# is searched among. No plan quantizes them, and they stay in float32.
CONSTANT_ROLES = ("patcher", "codes")
# Products of two activations: of queries and keys, of the softmax and values.
PRODUCT_ROLES = ("bmm_qk", "bmm_pv")
NO_WEIGHT = "-"  # the format of such a product's weight, as reports say it
BLOCKS, BLOCK_BITS = (32, 64, 128), 4
LOG2_BITS = 5
SITES_VERSION = "2"  # of sites.json: an export of another is made again
# The product of two scales within them is a normal number of float32, and so is 1 / scale.
LEAST_SCALE, MOST_SCALE = 2.0**-63, 2.0**63
MOST_SHIFT = 2**24  # steps; float32 counts no further
Name = Annotated[str, msgspec.Meta(min_length=1)]
Axis = Annotated[int, msgspec.Meta(ge=0, le=7)]
# Of positions, channels and sides: far above any model's, and arrays of as many still fit.
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


def require_unique(kind: str, names: Iterable[str]) -> None:
    """Raises ValueError for a name that comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{kind} {twice[0]} comes twice")


def require_smoothing(value: float | str | None) -> None:
    """Raises ValueError for an exponent outside 0 to 1."""
    if value is not None and not isinstance(value, str) and not 0 <= value <= 1:
        raise ValueError(f"smoothing must be between 0 and 1, got {value}")


class FoldPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Elements of an initializer that belong to a site's input channels, in their order.

    ``[start, start + channels)`` along ``axis``, all of the other axes.
    """

    initializer: Name
    axis: Axis
    start: Annotated[int, msgspec.Meta(ge=0)]


class ProducerFold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a site's input x, such that x / s - p costs nothing.

    Divide the elements of ``divide`` by s, then subtract p from those of ``subtract``, which are
    among the divided ones, in every graph that holds these initializers: one of them may be
    computed in another graph than the site's, as VAR's modulation is.
    """

    divide: tuple[FoldPart, ...]
    subtract: tuple[FoldPart, ...]


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantizable product: a Conv, MatMul or Gemm, or a product of two activations.

    ``weight`` is the ONNX initializer (None for a product of activations); ``channel_axis`` is the
    channel axis of the input tensor (1 for images). ``fold`` names where a per-channel scale of the
    input goes for free: the initializers of a norm's weight and bias, or None: an explicit Mul.
    ``producer_fold`` says it where parts of larger initializers take it. ``token_axis`` is the
    axis of the input along which positions lie, and ``position_input`` the graph's input or value
    with their numbers (None: they count from 0). Where all rows of a calibrated graph have such
    numbers, they are below ``positions``; a graph ``of_all_positions`` is given each
    once, in order.
    ``excluded`` says why the method leaves the site in high precision, None if it does not.
    """

    name: Name
    graph: Name
    role: Name
    op: Name
    node: Name
    weight: Name | None
    bias: Name | None
    input: Name
    output: Name
    weight_shape: tuple[Size, ...]
    channel_axis: Annotated[int, msgspec.Meta(ge=-8, le=7)] = 1
    shares_input_with: tuple[Name, ...] = ()
    fold: tuple[Name, Name] | None = None
    token_axis: Axis | None = None
    position_input: Name | None = None
    positions: Size | None = None
    of_all_positions: bool = False
    producer_fold: ProducerFold | None = None
    excluded: str | None = None

    @property
    def knows_positions(self) -> bool:
        """Whether the input can have a scale a position: in a graph that is calibrated."""
        numbered = self.of_all_positions or self.positions is not None
        return numbered and self.token_axis is not None


def may_be_planned(site: Site) -> bool:
    """Whether the site has a trained weight."""
    return site.weight is not None and site.role not in CONSTANT_ROLES


Verdict = Literal["INT8", "FP8", "INT8 or FP8", "high precision", "not buildable"]


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node of a graph may become on each target, and the reason where it is not INT8.

    Targets are "onnxruntime" (its CPU sessions) and compute capabilities of TensorRT for RTX.
    """

    graph: str
    node: str
    op: str
    domain: str = ""
    targets: dict[str, Verdict]
    reason: str | None = None


class SiteMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sites of a model, in graph order, and the graphs that are calibrated, as they run.

    Of a generator other graphs may have sites of the same names. `nodes` has verdicts on the nodes
    of custom graphs. Version 1 did not say which sites read all positions of a sequence.
    """

    sites: tuple[Site, ...]
    graphs: tuple[Name, ...] = ("encoder", "decoder")
    nodes: tuple[NodeVerdict, ...] = ()
    schema: Literal["arvg-trt/sites/v2"] = "arvg-trt/sites/v2"

    def __post_init__(self) -> None:
        require_unique("graph", self.graphs)
        require_unique("site", (f"{site.name} of the graph {site.graph}" for site in self.sites))
        known = {(site.name, site.graph) for site in self.sites}
        for site in self.sites:
            lost = [n for n in site.shares_input_with if (n, site.graph) not in known]
            if lost:
                raise ValueError(f"{site.name} shares its input with {lost[0]}, which is no site")

    def of_graph(self, graph: str) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.graph == graph)

    @property
    def calibrated(self) -> SiteMap:
        """The same without the sites of other graphs: what a plan has entries for."""
        sites = tuple(site for site in self.sites if site.graph in self.graphs)
        return msgspec.structs.replace(self, sites=sites)


class WeightFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a weight is stored: a symmetric uniform or logarithmic grid of ``bits``, or FP8 E4M3.

    The levels of ``log2`` are powers of two, which FP8 has exactly. A scale ``per_block`` serves
    ``block`` input channels of an output; only linears with float inputs have it, at 4 bits.
    """

    bits: int
    grid: Literal["uniform", "log", "log2", "fp8"] = "uniform"
    granularity: Literal["per_tensor", "per_channel", "per_block"] = "per_channel"
    block: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"weight bits must be 2 to 8, not {self.bits}")
        if self.grid == "fp8" and self.bits != 8:
            raise ValueError(f"an FP8 weight has 8 bits, not {self.bits}")
        if self.grid == "log2" and self.bits > LOG2_BITS:
            raise ValueError(
                f"integer exponents fill the range of FP8 with {LOG2_BITS} bits, not {self.bits}"
            )
        if (self.granularity == "per_block") != (self.block is not None):
            raise ValueError("a block size goes with the granularity per_block, and only with it")
        if self.block is not None and (
            self.block not in BLOCKS or self.bits != BLOCK_BITS or self.grid != "uniform"
        ):
            raise ValueError(
                f"weights in blocks are INT4 in blocks of {', '.join(map(str, BLOCKS))}, "
                "others are expanded on every run"
            )


class ActivationFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a site's input is quantized: per tensor, with an exact shift of the range.

    Or with a scale and a shift a position, which lie beside the packed weights: `scale` is then
    their median, and not read.

    The value on the grid is ``round(x / smoothing / scale) - shift`` in [-2^(b-1), 2^(b-1) - 1];
    ``shift`` is an integer number of steps, 0 for a symmetric range. Where ``centered``, the
    centre of each channel's calibrated range is subtracted instead, and ``shift`` is 0.
    """

    bits: int
    grid: Literal["uniform", "fp8"] = "uniform"
    granularity: Literal["per_tensor", "per_position"] = "per_tensor"
    scale: float | None = None
    shift: int = 0
    centered: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"activation bits must be 2 to 8, not {self.bits}")
        if self.centered and self.shift:
            raise ValueError("a centered activation has no shift beside its centres")
        if self.grid == "fp8" and (self.bits != 8 or self.shift or self.centered):
            raise ValueError(
                "an FP8 activation has 8 bits and no shift, its zone around 0 is dense"
            )
        if self.scale is not None and not LEAST_SCALE <= self.scale <= MOST_SCALE:
            raise ValueError(
                f"activation scale must be positive, {LEAST_SCALE:.1e} to {MOST_SCALE:.1e}, "
                f"not {self.scale}"
            )
        if not -MOST_SHIFT <= self.shift <= MOST_SHIFT:
            raise ValueError(
                f"activation shift must be within {MOST_SHIFT} steps, not {self.shift}"
            )


class SitePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The decision for one site; ``reason`` says why it stays in high precision, or has no fold.

    A product of two activations has no weight: ``activation`` is its first operand's format and
    ``other`` its second's; the ``reason`` then says what that costs an engine.

    ``smoothing`` is the exponent of the per-channel smoothing of the input, "predicted" for the
    scales of least predicted error, "search" for what loses least on samples that it was not fitted
    to, "gps" for gain-projected scales, None for none. ``rounding`` of
    the weight is to nearest, or "gptq": errors compensated on the calibration data.
    """

    name: Name
    weight: WeightFormat | None = None
    activation: ActivationFormat | None = None
    other: ActivationFormat | None = None
    smoothing: Smoothing | Literal["predicted"] | None = None
    rounding: Rounding = "nearest"
    reason: str | None = None

    def __post_init__(self) -> None:
        require_smoothing(self.smoothing)


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry per site; may be edited by hand and given back to ``quantize --plan``."""

    sites: tuple[SitePlan, ...]
    schema: Literal["arvg-trt/plan/v1"] = "arvg-trt/plan/v1"
