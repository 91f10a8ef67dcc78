"""Choose tokens from logits: guidance, top-k, top-p, one draw a row, all on numpy arrays.

A draw takes its noise as an argument, so the same logits and the same noise give the same token
everywhere. Rows are independent: logits [R, V] float32, noise [R, V] float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import GenerationError
from .spec import TIMES

Logits = NDArray[np.float32]
Noise = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Say how tokens are drawn.

    `cfg` >= 0 is the guidance strength as the family defines it, 0 for none; `top_k` 0 takes all
    of the vocabulary; `top_p` in (0, 1], 1 takes all; `greedy` takes the arg-max of the guided
    logits instead of a draw. `temperature` > 0 divides the guided logits. `cfg_power` >= 0 shapes
    the guidance over the steps, None in families whose guidance has another shape. `iterations`,
    passes over an image, and `diffusion_steps`, of each of its tokens, are a MAR's, else None.
    """

    cfg: float
    top_k: int
    top_p: float
    greedy: bool = False
    temperature: float = 1.0
    cfg_power: float | None = None
    iterations: int | None = None
    diffusion_steps: int | None = None

    def check(self, vocab_size: int, length: int) -> None:
        """Raise GenerationError that lists every value out of its range.

        `length` is the number of an image's tokens.
        """
        odd = [
            f"{name} is {value}, not {wanted}"
            for name, value, wanted, fits in (
                ("cfg", self.cfg, "0 or more", 0 <= self.cfg < math.inf),
                (
                    "top_k",
                    self.top_k,
                    f"0 (all) to {vocab_size}, the vocabulary",
                    0 <= self.top_k <= vocab_size,
                ),
                ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
                ("temperature", self.temperature, "above 0", 0 < self.temperature < math.inf),
                ("cfg_power", self.cfg_power, "0 or more", 0 <= (self.cfg_power or 0) < math.inf),
                (
                    "iterations",
                    self.iterations,
                    f"1 to {length}, the tokens of an image",
                    self.iterations is None or 1 <= self.iterations <= length,
                ),
                (
                    "diffusion_steps",
                    self.diffusion_steps,
                    f"2 to {TIMES}",
                    self.diffusion_steps is None or 2 <= self.diffusion_steps <= TIMES,
                ),
            )
            if not fits
        ]
        if odd:
            raise GenerationError("; ".join(odd), where="sampling")


def guide(conditional: Logits, unconditional: Logits, strength: float) -> Logits:
    """Return the guided logits (1 + t) c - t u, which is u + (1 + t) (c - u); any shape."""
    guided = (1 + strength) * conditional
    guided -= strength * unconditional
    return guided


def image_streams(seed: int, first: int, count: int) -> list[np.random.Generator]:
    """Return a stream of random numbers for each image `first` to `first + count - 1`.

    They depend on the seed and the image's number alone, so batches may be cut anywhere.
    """
    numbers = range(first, first + count)
    return [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        for number in numbers
    ]


def exponential_noise(streams: Sequence[np.random.Generator], rows: int, vocab_size: int) -> Noise:
    """Draw E ~ Exp(1), [streams * rows, vocab_size]: the next `rows` rows of each stream."""
    noise = np.empty((len(streams), rows, vocab_size))
    for stream, part in zip(streams, noise, strict=True):
        stream.standard_exponential(out=part)
    return noise.reshape(-1, vocab_size)


def sample(logits: Logits, noise: Noise, top_k: int, top_p: float) -> Tokens:
    """Draw one token a row, int64 [R], from what top-k and then top-p leave.

    With p the softmax of what is left, argmax(p / E) = argmax(log p - log E) has the distribution
    p for E ~ Exp(1). It is how `torch.multinomial` draws one sample.
    """
    tokens, values = keep_top_k(logits, top_k)
    values = keep_top_p(values, top_p)
    # log p is the logit but for a constant of the row.
    drawn = np.argmax(values - np.log(np.take_along_axis(noise, tokens, axis=1)), axis=1)
    chosen: Tokens = np.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]
    return chosen


def keep_top_k(logits: Logits, k: int) -> tuple[Tokens, Logits]:
    """Return tokens [R, K] in ascending order and their logits, of all that reach the k-th value.

    K >= k: what ties with the k-th value is kept. Rows with fewer ties than others end in token 0
    at -inf. k = 0 keeps all.
    """
    rows, vocab = logits.shape
    if k in (0, vocab):
        return np.broadcast_to(np.arange(vocab), logits.shape), logits
    least = np.partition(logits, vocab - k, axis=1)[:, vocab - k, None]
    row, token = np.divmod(np.flatnonzero(logits >= least), vocab)
    counts = np.bincount(row, minlength=rows)
    most = int(counts.max())
    if most == k:
        tokens = token.reshape(rows, k)
        return tokens, np.take_along_axis(logits, tokens, axis=1)
    slot = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    tokens = np.zeros((rows, most), np.int64)
    values = np.full((rows, most), -np.inf, logits.dtype)
    tokens[row, slot] = token
    values[row, slot] = logits[row, token]
    return tokens, values


def keep_top_p(values: Logits, p: float) -> Logits:
    """Return `values` [R, K], with -inf for the least probable with at most 1 - p together.

    In ascending order (of equal values the earlier comes first) all whose cumulative softmax is
    at most 1 - p go, but never the largest. Sums are made in float64.
    """
    if p == 1:
        return values
    ascending = np.sort(values, axis=1)
    mass = np.cumsum(np.exp(ascending - ascending[:, -1:]), axis=1, dtype=np.float64)
    gone = np.count_nonzero(mass <= (1 - p) * mass[:, -1:], axis=1)
    gone = np.minimum(gone, values.shape[1] - 1)[:, None]
    least = np.take_along_axis(ascending, gone, axis=1)
    mask = values >= least
    # Some values that equal the least one in the set may be dropped: those that come first.
    surplus = np.count_nonzero(mask, axis=1, keepdims=True) - (values.shape[1] - gone)
    if surplus.any():
        equal = values == least
        mask &= ~equal | (np.cumsum(equal, axis=1) > surplus)
    return np.where(mask, values, -np.inf).astype(values.dtype, copy=False)
