"""Measure how close a quantized generator's logits come to FP32's under teacher forcing."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...numerics.noise import SignalAndNoise
from .image import none_if_infinite
from .sums import SampleSums, energies

Floats = NDArray[np.float64]
LIKELIEST = 5


class LogitsAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Compare a candidate's next-token distributions with FP32's, at ``positions`` of them.

    ``kl`` is KL(FP32 || candidate) in nats a position. ``top1`` is the share of positions whose
    likeliest token is the same, ``top5`` the mean share of FP32's five likeliest that are among the
    candidate's five. ``sqnr_db`` compares logits minus their mean over the vocabulary, which
    softmax ignores; None for no error at all. ``cross_entropy`` is that of the true ``tokens``, in
    nats a token, in rows with a class alone; ``cross_entropy_fp32`` is the same of FP32. ``sums``
    has, by image, what these are made of; a report of version 1 has none. ``kl_by_position`` and
    ``top1_by_position`` are ``kl`` and ``top1`` at each of the L positions of an image's sequence.
    """

    kl: float
    top1: float
    top5: float
    sqnr_db: float | None
    cross_entropy: float
    cross_entropy_fp32: float
    positions: int
    tokens: int
    sums: dict[str, tuple[float, ...]] = {}
    kl_by_position: tuple[float, ...] = ()
    top1_by_position: tuple[float, ...] = ()


class LogitsAccumulator:
    """Add up errors of logits over batches, in float64."""

    def __init__(self) -> None:
        self._sqnr = SignalAndNoise()
        self._divergence = 0.0
        self._first = 0
        self._shared = 0
        self._losses = [0.0, 0.0]
        self._tokens = 0
        self._positions = 0
        self._k = LIKELIEST
        self._sums = SampleSums()
        self._by_position = np.zeros((3, 0))  # rows, divergence and equal likeliest tokens, [3, L]

    def add(
        self,
        reference: NDArray[Any],
        value: NDArray[Any],
        tokens: NDArray[np.integer],
        conditional: NDArray[np.bool_],
        sample: str = "",
    ) -> None:
        """Add logits [R, L, V] of FP32 and candidate, with the true tokens [R, L].

        `conditional` [R] says which rows have a class; `sample` is the image that they are of.
        """
        wide = [v.astype(np.float64) for v in (reference, value)]
        p, q = (log_softmax(v) for v in wide)
        apart, same = divergence(p, q).sum(axis=-1), p.argmax(axis=-1) == q.argmax(axis=-1)
        diverged, first = float(np.sum(apart)), int(np.count_nonzero(same))
        self._add_positions(apart, same)
        self._k = min(LIKELIEST, p.shape[-1])
        own, theirs = (likeliest(v, self._k) for v in (q, p))
        shared = int(np.count_nonzero(theirs[..., :, None] == own[..., None, :]))
        centred = [v - v.mean(axis=-1, keepdims=True) for v in wide]
        self._sqnr.add(*centred)
        chosen = tokens[conditional][..., None].astype(np.int64)
        losses = [-float(np.take_along_axis(v[conditional], chosen, -1).sum()) for v in (p, q)]
        self._divergence += diverged
        self._first += first
        self._shared += shared
        self._losses = [total + loss for total, loss in zip(self._losses, losses, strict=True)]
        self._tokens += chosen.size
        self._positions += p[..., 0].size
        self._sums.add(
            sample,
            divergence=diverged,
            first=first,
            shared=shared,
            positions=p[..., 0].size,
            likeliest=self._k * p[..., 0].size,
            loss_fp32=losses[0],
            loss=losses[1],
            tokens=chosen.size,
            **energies(*centred),
        )

    def _add_positions(self, apart: Floats, same: NDArray[np.bool_]) -> None:
        """Add the divergence and the equal likeliest tokens, each [R, L], position by position."""
        missing = apart.shape[1] - self._by_position.shape[1]
        if missing > 0:
            self._by_position = np.pad(self._by_position, ((0, 0), (0, missing)))
        added = [np.ones(apart.shape), apart, same]
        self._by_position[:, : apart.shape[1]] += [each.sum(axis=0) for each in added]

    def result(self) -> LogitsAccuracy:
        """Return the accuracy over all batches.

        Raises:
            ZeroDivisionError: nothing was added.
        """
        count = self._positions
        rows, apart, same = self._by_position
        return LogitsAccuracy(
            # Rounding may leave a little less than zero; NaN stays NaN.
            kl=float(np.maximum(0.0, self._divergence / count)),
            top1=self._first / count,
            top5=self._shared / (count * self._k),
            sqnr_db=none_if_infinite(self._sqnr.decibels()),
            cross_entropy=self._losses[1] / self._tokens,
            cross_entropy_fp32=self._losses[0] / self._tokens,
            positions=count,
            tokens=self._tokens,
            sums=self._sums.columns(),
            kl_by_position=tuple(np.maximum(0.0, apart / rows).tolist()),
            top1_by_position=tuple((same / rows).tolist()),
        )


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def divergence(p: Floats, q: Floats) -> Floats:
    """Return what each outcome adds to KL(p || q), of logarithms; 0 where p has it never."""
    with np.errstate(invalid="ignore"):
        found = np.exp(p) * (p - q)
    added: Floats = np.where((p == -np.inf) & ~np.isnan(q), 0.0, found)
    return added


def likeliest(values: Floats, k: int) -> NDArray[np.intp]:
    """Return the indices of the k largest of the last axis, in any order."""
    return np.argpartition(values, values.shape[-1] - k, axis=-1)[..., -k:]


def perplexity(cross_entropy: float) -> float:
    """Return exp of the cross-entropy, which is in nats a token."""
    return math.exp(cross_entropy)
