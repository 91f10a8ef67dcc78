"""Name the candidates in tables, and say equal lines once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .schema import ENGINE, HALF_PRECISION, QDQ

CANDIDATES = {
    QDQ: "Q/DQ graph (reference session)",
    HALF_PRECISION: "its FP16 copy for TensorRT (reference session)",
    ENGINE: "Engine as executed",
}
# In tables with several columns of each.
SHORT = {QDQ: "Q/DQ", HALF_PRECISION: "FP16 copy", ENGINE: "Engine"}
NAMED = 6  # names that are written one by one
_NUMBERED = re.compile(r"(.+)\.(\d+)")


def joined(names: Sequence[str], noun: str) -> str:
    """Return a few names as they are, more as their number, the first and the last."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names)} {noun}: {names[0]} to {names[-1]}"


def stem(name: str) -> str:
    """Return a graph's name without its number: update of update.3."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


def numbered(names: Sequence[str]) -> str:
    """Return graphs of one stem in one word: update.0 to update.6 as update.0-6."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    numbers = [int(match[2]) for match in found if match]
    if len(numbers) < len(names) or len(names) == 1 or numbers != list(_from(numbers)):
        return ", ".join(names)
    return f"{stem(names[0])}.{numbers[0]}-{numbers[-1]}"


def _from(numbers: Sequence[int]) -> range:
    return range(numbers[0], numbers[0] + len(numbers))
