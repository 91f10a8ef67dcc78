"""Round weights to four bits in blocks of input channels, as engines multiply them.

A block of 32, 64 or 128 input channels of one output has its own scale. Float16 holds each scale
exactly, so the half-precision copy of the graph keeps it. Quantized values are -7 ... 7. Weights
whose scales do not fit float16 (gates near 1e-6) also have a power of two per output channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .scheme import BLOCK_BITS

Floats = NDArray[np.float32]
MOST_Q = 2 ** (BLOCK_BITS - 1) - 1
FRACTIONS = np.geomspace(0.6, 1.0, 12)
# The smallest normal float16: below it scales lose digits, and a half-precision copy stays in FP32.
LEAST_SCALE = 2.0**-14
LARGEST_SCALE = 2.0**15
LARGEST_EXPONENT = 126  # largest exponent of a factor that float32 holds at full precision
# A row of smaller weights counts as zeros: float32 has no scale of full precision for it.
LEAST_WEIGHT = 1e-33
# A block's scale counts from this share of its row's sum of squares; INT4 itself loses about 2^-9.
LEAST_SHARE = 2.0**-24
LARGEST_ROW = -1  # exponent of the largest weight of a row that was raised
ROWS = 256  # processed at a time, which bounds the memory


def quantize_blocks(
    weight: Floats, block: int, importance: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], Floats, Floats | None]:
    """Return q [O, I], scales [O, I / block] and factors [O] (None: all 1) of a weight [O, I].

    Each block's clip is the fraction of its largest magnitude with the least squared error,
    weighted by `importance` [I], the mean square of each input channel. A weight is q times its
    block's scale times its row's factor.

    Raises:
        ValueError: I is no multiple of `block`.
    """
    outputs, inputs = weight.shape
    if inputs % block:
        raise ValueError(f"{inputs} input channels are no multiple of {block}")
    blocks = weight.astype(np.float32, copy=False).reshape(outputs, -1, block)
    channel_weights = None
    if importance is not None:
        # Scaled by a power of two, so that no sum leaves the range of float32.
        unit = importance / 2.0 ** np.frexp(importance.max())[1]
        channel_weights = unit.astype(np.float32).reshape(-1, block)
    factor = np.concatenate(
        [row_factors(blocks[k : k + ROWS], channel_weights) for k in range(0, outputs, ROWS)]
    )
    parts = [
        best_clips(blocks[k : k + ROWS] / factor[k : k + ROWS, None, None], channel_weights)
        for k in range(0, outputs, ROWS)
    ]
    q, scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return q.reshape(weight.shape), scale, factor if np.any(factor != 1) else None


def row_factors(blocks: Floats, importance: Floats | None) -> Floats:
    """Return powers of two [O] that bring the scales of each row's blocks into float16's range.

    `blocks` is [O, B, block]. The factor is 1 where the scales already fit; a row is raised no
    further than its smallest block that counts needs.
    """
    wide = blocks.astype(np.float64)
    squares = np.square(wide) if importance is None else np.square(wide) * importance
    share = squares.sum(axis=2)
    counts = (share > 0) & (share >= LEAST_SHARE * share.sum(axis=1, keepdims=True))
    scale = np.where(counts, np.abs(wide).max(axis=2), np.inf).min(axis=1) * FRACTIONS[0] / MOST_Q
    top = np.abs(wide).max(axis=(1, 2))
    scale = np.where(top < LEAST_WEIGHT, np.inf, scale)
    least = np.where(np.isfinite(scale), scale, LEAST_SCALE)
    wanted = np.ceil(np.log2(LEAST_SCALE / least))
    room = LARGEST_ROW - np.frexp(top)[1]
    raised = np.clip(np.minimum(wanted, room), 0, LARGEST_EXPONENT)
    lowered = np.where(top / MOST_Q > LARGEST_SCALE, room, 0)
    factor: Floats = np.exp2(-(raised + lowered)).astype(np.float32)
    return factor


def best_clips(blocks: Floats, importance: Floats | None) -> tuple[NDArray[np.int8], Floats]:
    """Return quantized values [O, B, block] and scales [O, B] with the least squared error."""
    top = np.abs(blocks).max(axis=2)
    least = np.full(top.shape, np.inf, np.float32)
    scale = half_scale(top / MOST_Q)
    q = np.clip(np.rint(blocks / scale[..., None]), -MOST_Q, MOST_Q).astype(np.int8)
    for fraction in FRACTIONS:
        tried = half_scale(top * np.float32(fraction / MOST_Q))
        rounded = np.clip(np.rint(blocks / tried[..., None]), -MOST_Q, MOST_Q)
        square = np.square(rounded * tried[..., None] - blocks)
        error = square.sum(axis=2) if importance is None else (square * importance).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        scale[better], q[better] = tried[better], rounded[better].astype(np.int8)
    return q, scale


def half_scale(scale: Floats) -> Floats:
    """Return scales rounded to float16, as float32, and never below its smallest normal number."""
    half = np.maximum(scale, np.float32(LEAST_SCALE)).astype(np.float16)
    widened: Floats = half.astype(np.float32)
    return widened
