"""The steps of a PAR at which its graphs are compared with PyTorch."""

from __future__ import annotations


def steps(length: int, group: int) -> list[tuple[int, int]]:
    """Return the bounds of the steps of one token, of the first two groups and of the last."""
    singles = [(a, a + 1) for a in range(group)]
    groups = [(a, a + group) for a in range(group, length, group)]
    return [*singles, *dict.fromkeys((*groups[:2], groups[-1]))]
