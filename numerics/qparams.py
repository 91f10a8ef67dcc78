"""Define scale and zero point of a quantized input: per tensor, or static per token.

The numbers of a grid are (q - zero_point) * scale for q = -2^(bits-1) ... 2^(bits-1) - 1, which is
the paper's clamp(round(x / d) + z, 0, 2^b - 1) with zero_point = z - 2^(bits-1). Files say it as
`shift`, which is -zero_point; only this module knows both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .scheme import ActivationFormat

Floats = NDArray[np.float64]
DType = Literal["int", "fp8"]


@dataclass(frozen=True, slots=True)
class QParams:
    """Hold what rounds a tensor: `scale` and `zero_point`, [1] per tensor or [T] per token.

    "fp8" are E4M3 numbers times the scale; they have 8 bits and no zero point.
    """

    scale: Floats
    zero_point: NDArray[np.int64]
    bits: int
    dtype: DType = "int"

    @classmethod
    def symmetric(cls, scale: Floats, bits: int, dtype: DType = "int") -> QParams:
        """Return quantization parameters without a zero point."""
        return cls(scale, np.zeros(len(scale), np.int64), bits, dtype)

    @classmethod
    def from_format(cls, planned: ActivationFormat) -> QParams:
        """Return the quantization parameters of a plan's entry, which must have a scale."""
        assert planned.scale is not None
        scale, zero_point = np.array([planned.scale]), np.array([-planned.shift])
        return cls(scale, zero_point, planned.bits, dtype_of(planned))

    @classmethod
    def from_shift(cls, scale: Floats, shift: NDArray[np.int64], bits: int) -> QParams:
        """Return the quantization parameters of a file's tables `token_scale` and `token_shift`."""
        return cls(scale, -shift, bits)

    @property
    def granularity(self) -> Literal["per_tensor", "per_token"]:
        return "per_tensor" if len(self.scale) == 1 else "per_token"

    @property
    def low(self) -> NDArray[np.int64]:
        """Return the least multiple of the scale, [1] or [T]; the largest is 2^bits - 1 more."""
        found: NDArray[np.int64] = -self.zero_point - 2 ** (self.bits - 1)
        return found

    @property
    def offset(self) -> Floats:
        """Return what is subtracted from the input to leave a zero point of 0, [1] or [T]."""
        offset: Floats = -self.zero_point * np.float64(self.engine_scale)
        return offset

    @property
    def engine_scale(self) -> np.float32:
        """Return the scalar scale that engines take: the median over the tokens."""
        median: np.float32 = np.float32(np.median(self.scale))
        return median

    @property
    def token_scale(self) -> NDArray[np.float32]:
        """Return each token's scale relative to `engine_scale`, 1 in the median; [1] or [T]."""
        relative: Floats = self.scale / np.float64(self.engine_scale)
        return relative.astype(np.float32)

    def deployed(self) -> QParams:
        """Return the parameters a graph computes with: each scale is the product of two factors."""
        return replace(self, scale=self.token_scale * np.float64(self.engine_scale))

    def fill(self, planned: ActivationFormat) -> ActivationFormat:
        """Return a plan's entry with the scale that engines take, and its zero point."""
        shift = -int(self.zero_point[0]) if self.granularity == "per_tensor" else 0
        return msgspec.structs.replace(planned, scale=float(self.engine_scale), shift=shift)

    def as_format(self, *, centered: bool = False) -> ActivationFormat:
        """Return a plan's entry per tensor with exactly this scale and zero point."""
        return ActivationFormat(
            bits=self.bits,
            grid="fp8" if self.dtype == "fp8" else "uniform",
            scale=float(self.scale[0]),
            shift=-int(self.zero_point[0]),
            centered=centered,
        )

    def token_tables(self) -> dict[str, NDArray[np.generic]]:
        """Return the per-token tables for weights.safetensors; empty if there is one scale."""
        if self.granularity == "per_tensor":
            return {}
        return {
            "token_scale": self.token_scale * self.engine_scale,
            "token_shift": (-self.zero_point).astype(np.int32),
        }


def dtype_of(planned: ActivationFormat) -> DType:
    """Return the kind of numbers that a plan's entry rounds to."""
    return "fp8" if planned.grid == "fp8" else "int"


def input_offset(planned: ActivationFormat | None) -> np.float32:
    """Return what a plan's entry subtracts from all of the smoothed input; 0 without a scale."""
    offset: np.float32 = np.float32(0)
    if planned is not None and planned.scale is not None:
        offset = np.float32(planned.shift) * np.float32(planned.scale)
    return offset
