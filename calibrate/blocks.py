"""Four-bit weights in blocks of input channels, the form that engines multiply without expanding.

A block of 32, 64 or 128 input channels of one output has a scale of its own, which float16 holds
exactly and the FP16 twin therefore keeps. Codes are -7 ... 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..sites import BLOCK_BITS

Floats = NDArray[np.float32]
REACH = 2 ** (BLOCK_BITS - 1) - 1
FRACTIONS = np.geomspace(0.6, 1.0, 12)
# float16's smallest normal number: of less it loses digits, and the twin would stay in FP32.
LEAST_SCALE = 2.0**-14
ROWS = 256  # of a weight at a time, which bounds the memory


def block_codes(
    weight: Floats, block: int, importance: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], Floats]:
    """Codes [O, I] and scales [O, I / block] of a weight [O, I].

    Each block's clip is the fraction of its largest magnitude with the least squared error,
    weighted by `importance` [I], the mean square of each input channel.

    Raises:
        ValueError: I is no multiple of `block`.
    """
    outputs, inputs = weight.shape
    if inputs % block:
        raise ValueError(f"{inputs} input channels are no multiple of {block}")
    blocks = weight.astype(np.float32, copy=False).reshape(outputs, -1, block)
    gain = None if importance is None else importance.astype(np.float32).reshape(-1, block)
    parts = [best_clips(blocks[k : k + ROWS], gain) for k in range(0, outputs, ROWS)]
    codes, scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return codes.reshape(weight.shape), scale


def best_clips(blocks: Floats, gain: Floats | None) -> tuple[NDArray[np.int8], Floats]:
    """Codes [O, B, block] and scales [O, B] of some rows."""
    top = np.abs(blocks).max(axis=2)
    least = np.full(top.shape, np.inf, np.float32)
    scale = np.empty_like(top)
    codes = np.empty(blocks.shape, np.int8)
    for fraction in FRACTIONS:
        tried = half_scale(top * np.float32(fraction / REACH))
        rounded = np.clip(np.rint(blocks / tried[..., None]), -REACH, REACH)
        square = np.square(rounded * tried[..., None] - blocks)
        error = square.sum(axis=2) if gain is None else (square * gain).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        scale[better], codes[better] = tried[better], rounded[better].astype(np.int8)
    return codes, scale


def half_scale(scale: Floats) -> Floats:
    """The nearest float16 numbers of full precision, in float32."""
    return np.maximum(scale, np.float32(LEAST_SCALE)).astype(np.float16).astype(np.float32)
