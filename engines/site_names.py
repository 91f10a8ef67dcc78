"""Write many names of sites as few, without leaving one out: ``blocks.{0-23}.attn.proj``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(\d+)")


def grouped_names(names: Iterable[str]) -> str:
    """Return names as one line; those that differ in numbers alone stand together."""
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in dict.fromkeys(names):
        parts = _NUMBER.split(name)
        alike.setdefault(tuple(parts[::2]), []).append(tuple(parts[1::2]))
    return ", ".join(
        "".join(t + n for t, n in zip(texts, (*numbers, ""), strict=True))
        for texts, rows in alike.items()
        for numbers in _merged(rows)
    )


def _merged(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return rows of numbers as few rows of sets, whose products together are the rows."""
    if not rows or not rows[0]:
        return list(rows)[:1]
    behind: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in rows:
        behind.setdefault(first, []).append(tuple(rest))
    same: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for first, rests in behind.items():
        same.setdefault(tuple(_merged(rests)), []).append(first)
    return [(_set_text(firsts), *rest) for rests, firsts in same.items() for rest in rests]


def _set_text(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    runs: list[list[str]] = []
    for number in sorted(numbers, key=lambda n: (int(n), n)):
        if runs and str(int(number) - 1) == runs[-1][-1] and str(int(number)) == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return "{" + ",".join(texts) + "}"
