"""Define how weights and inputs are quantized: formats, and the plan with one entry per site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

Smoothing = float | Literal["search", "gps"]
Rounding = Literal["nearest", "gptq"]
BLOCKS, BLOCK_BITS = (32, 64, 128), 4
LOG2_BITS = 5
# The product of two scales within them is a normal number of float32, and so is 1 / scale.
LEAST_SCALE, MOST_SCALE = 2.0**-63, 2.0**63
MOST_SHIFT = 2**24  # quantized values; float32 counts no further
Name = Annotated[str, msgspec.Meta(min_length=1)]
CacheType = Literal["float32", "float16", "fp8", "int8"]
CacheGranularity = Literal["per_head", "per_channel"]


def require_unique(kind: str, names: Iterable[str]) -> None:
    """Raise ValueError for a name that comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{kind} {twice[0]} comes twice")


def require_smoothing(value: float | str | None) -> None:
    """Raise ValueError for an exponent outside 0 to 1."""
    if value is not None and not isinstance(value, str) and not 0 <= value <= 1:
        raise ValueError(f"smoothing must be between 0 and 1, got {value}")


class WeightFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define how a weight is stored: a symmetric uniform or logarithmic grid, or FP8 E4M3.

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
    """Define how a site's input is quantized: with one scale, or with one per token.

    The rounded value is ``round(x / smoothing / scale) - shift`` in [-2^(b-1), 2^(b-1) - 1];
    ``shift`` is an integer, the negated zero point, and 0 for a symmetric range. Where
    ``centered``, the centre of each channel's calibrated range is subtracted instead, and ``shift``
    is 0.

    With the granularity ``per_position``, a scale and a shift per token lie beside the packed
    weights; `scale` is then their median, and is not read.
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
    """Hold the decision for one site; ``reason`` says why it stays in high precision.

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


class CachePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say how one attention stores keys and values between steps, all of one ``type``.

    ``keys`` and ``values`` have a scale per head or per channel of a head, which lie beside the
    packed weights; None: what loses less on samples that neither was fitted to. A type without
    scales has neither.
    """

    name: Name
    type: CacheType
    keys: CacheGranularity | None = None
    values: CacheGranularity | None = None

    def __post_init__(self) -> None:
        if self.type in ("float32", "float16") and (self.keys or self.values):
            raise ValueError(f"a cache in {self.type} has no scales")


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold one entry per site; a user may edit it and give it back to ``quantize --plan``.

    ``caches`` has one per attention that keeps keys and values; without it they stay as exported.
    """

    sites: tuple[SitePlan, ...]
    caches: tuple[CachePlan, ...] | msgspec.UnsetType = msgspec.UNSET
    schema: Literal["arvg-trt/plan/v1"] = "arvg-trt/plan/v1"
