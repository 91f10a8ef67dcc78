"""The steps of a LlamaGen at which its graphs are compared with PyTorch."""

from __future__ import annotations

FIRST = 3  # steps from the empty cache on, each with the cache that the one before it gave


def steps(length: int) -> list[tuple[int, int]]:
    """Return the bounds of the first steps, of one in the middle and of the last."""
    starts = {*range(min(FIRST, length)), length // 2, length - 1}
    return [(a, a + 1) for a in sorted(starts)]
