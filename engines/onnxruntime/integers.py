"""Keep sums of products within INT32, and outputs on a uint8 grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...numerics.parts import parts

Range = tuple[NDArray[np.float64], NDArray[np.float64]]  # (low [O], high [O])
Ranges = Mapping[str, Range]
INT32_MAX = 2**31 - 1
UINT8_MAX = 255
# For an output that is always zero; its scale keeps the full precision of float32.
LEAST_RANGE = 1e-30
# The quantizer spans this multiple of the calibrated range of an output.
HEADROOM = 1.05


def with_room_for_bias(
    q: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return q and scales [O] with which the bias fits INT32 beside the sums.

    `bias` [O] is in units of `scale`. A channel of tiny weights with a large bias gets a larger
    scale, and its weights are rounded once more. That costs 1e-3 of the scale of its output or
    less, which has to span the bias.
    """
    room = INT32_MAX - largest_sums(q)
    wide = scale.astype(np.float64)
    raised = np.maximum(wide, np.abs(bias) / room * (1 + 1e-9))
    share = (wide / raised).reshape(-1, *(1,) * (q.ndim - 1))
    return np.rint(q * share).astype(np.int8), raised


def largest_sums(q: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the most that the products of each channel [O] with any uint8 input add up to."""
    sums = [
        np.abs(q[part].astype(np.int16)).reshape(len(q[part]), -1).sum(axis=1, dtype=np.int64)
        for part in parts(q)
    ]
    return UINT8_MAX * np.concatenate(sums)


def output_qparams(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the uint8 scale and zero point per output channel, [O] each; 0 is representable."""
    low = np.minimum(low * HEADROOM, 0.0)
    high = np.maximum(high * HEADROOM, 0.0)
    scale = np.maximum(high - low, LEAST_RANGE) / UINT8_MAX
    return scale, np.clip(np.round(-low / scale), 0, UINT8_MAX).astype(np.uint8)
