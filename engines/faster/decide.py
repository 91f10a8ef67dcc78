"""Decide by bisection which sites keep their rounded inputs: those that are proved to be faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .pairs import Pairs, PairVerdict

# Runs the sites of these names in both forms, in turn, so often.
Timer = Callable[[Sequence[str], int], Pairs]
FIRST_PAIRS, MOST_PAIRS = 8, 64
MOST_MS = 60_000.0  # of timing one block; then what was seen has to do
# Sites that take less of all the time together are judged together.
LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Judged:
    """Hold a block of names, its times and the verdict; `reason` says what else decided."""

    names: tuple[str, ...]
    pairs: Pairs
    verdict: PairVerdict
    reason: str | None = None


def decide(
    blocks: Sequence[Sequence[str]],
    timer: Timer,
    factor: float,
    *,
    least_share: float = LEAST_SHARE,
) -> list[Judged]:
    """Return a verdict on every name: kept only if its block is proved faster by the factor.

    Each block is halved until a name is alone, or the rest takes less than `least_share` of all the
    time. Blocks are timed again and again until the interval leaves the factor, but for a limit.
    Those that noise left inconclusive are then timed together, and kept if that proves them faster.
    """
    whole = max(timer([name for block in blocks for name in block], FIRST_PAIRS).medians)
    found: list[Judged] = []

    def halve(names: tuple[str, ...]) -> None:
        first = timer(names, FIRST_PAIRS)
        if len(names) == 1 or max(first.medians) < least_share * whole:
            found.append(judge(names, first, timer, factor))
            return
        middle = len(names) // 2
        halve(names[:middle])
        halve(names[middle:])

    for block in blocks:
        if block:
            halve(tuple(block))
    return together(found, timer, factor)


def judge(names: tuple[str, ...], first: Pairs, timer: Timer, factor: float) -> Judged:
    """Time a block until its interval leaves the factor, or the limit is reached."""
    pairs = first
    while pairs.speed.verdict(factor) == "inconclusive":
        if len(pairs) >= MOST_PAIRS or pairs.total_ms >= MOST_MS:
            break
        pairs += timer(names, len(pairs))
    return Judged(names, pairs, pairs.speed.verdict(factor))


def together(found: Sequence[Judged], timer: Timer, factor: float) -> list[Judged]:
    """Judge inconclusive blocks by their sum, whose noise is less, and keep them if it wins."""
    unclear = [each for each in found if each.verdict == "inconclusive"]
    if len(unclear) < 2:
        return list(found)
    names = tuple(name for each in unclear for name in each.names)
    judged = judge(names, timer(names, FIRST_PAIRS), timer, factor)
    if judged.verdict != "kept":
        return list(found)
    speed = judged.pairs.speed
    reason = (
        f"inconclusive alone; {len(unclear)} such rows together are {speed.ratio:.2f} times "
        f"as fast ({speed.low:.2f} to {speed.high:.2f})"
    )
    return [
        replace(each, verdict="kept", reason=reason) if each in unclear else each for each in found
    ]
