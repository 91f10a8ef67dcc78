"""Measure how evenly a tokenizer uses its codebook, for each group of channels by itself."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class CodebookGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Say how one group of channels uses the codebook.

    ``used`` is the share of entries that occur, in [0, 1]. ``perplexity`` is exp of the entropy of
    their frequencies: 1 where all tokens are equal, the codebook's size where all entries are as
    frequent. It cannot exceed the number of tokens.
    """

    used: float
    perplexity: float


class CodebookUse(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the use of a codebook of ``size`` entries by ``tokens`` tokens of each group."""

    size: int
    tokens: int
    groups: tuple[CodebookGroup, ...]

    @property
    def perplexity(self) -> float:
        """Return the perplexity, mean over groups."""
        return sum(group.perplexity for group in self.groups) / len(self.groups)


class CodebookCounts:
    """Count how often each entry occurs in each group, for any number of images.

    Counts of parts of the images add up, in any order.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._counts: NDArray[np.int64] | None = None

    def add(self, tokens: NDArray[np.integer]) -> None:
        """Add tokens in [0, size): [N, h, w], [N, length], or [N, h, w, groups]."""
        groups = tokens.shape[3] if tokens.ndim == 4 else 1
        columns = tokens.reshape(-1, groups).T
        counts = np.stack([np.bincount(column, minlength=self.size) for column in columns])
        self._counts = counts if self._counts is None else self._counts + counts

    def merge(self, other: CodebookCounts) -> None:
        """Add the counts of other images of the same tokenizer."""
        if other._counts is not None:
            self._counts = other._counts + (0 if self._counts is None else self._counts)

    def result(self) -> CodebookUse | None:
        """Return the use over all images; None if there were none."""
        if self._counts is None:
            return None
        return CodebookUse(
            size=self.size,
            tokens=int(self._counts[0].sum()),
            groups=tuple(
                CodebookGroup(
                    used=int(np.count_nonzero(counts)) / self.size, perplexity=perplexity(counts)
                )
                for counts in self._counts
            ),
        )


def perplexity(counts: NDArray[np.integer]) -> float:
    """Return exp of the entropy, in nats, of frequencies given as counts of which one is not 0."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
