"""Read what an executed engine takes: times, rates, the start and its memory, with their samples.

Times of a part have its name in front, such as ``decoder.p90_ms``; those without are of all parts.
Rates are of the median round. A start is that of a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .figure import plain
from .sampled import Sampled, median, percentile, ratio_of_medians
from .timing import NOUN, rate_sampled

if TYPE_CHECKING:
    from ..machine.start import Starts
    from ..report.schema import LatencyRow, Report

NOT_MEASURED = "it was not measured"
MEGABYTE = 1_000_000  # bytes


class Timed(NamedTuple):
    """Say how a figure of timed rounds is read, as the report has it, and what its samples are."""

    value: Callable[[LatencyRow], float]
    sampled: Callable[[LatencyRow], Sampled]


OF_PART = {
    "speedup": Timed(
        lambda row: row.speed.ratio,
        lambda row: ratio_of_medians(row.fp32.samples_ms, row.engine.samples_ms),
    ),
    "latency_ms": Timed(
        lambda row: row.engine.p50_ms, lambda row: median(row.engine.samples_ms, noun=NOUN)
    ),
    "p90_ms": Timed(
        lambda row: row.engine.p90_ms, lambda row: percentile(row.engine.samples_ms, 90, noun=NOUN)
    ),
    "p99_ms": Timed(
        lambda row: row.engine.p99_ms, lambda row: percentile(row.engine.samples_ms, 99, noun=NOUN)
    ),
}
RATES = ("images_per_s", "samples_per_s", "tokens_per_s")
OF_START: dict[str, Callable[[Starts], Sampled]] = {
    "load_ms": lambda starts: median(starts.load_ms, noun="starts"),
    "first_ms": lambda starts: median(starts.first_ms, noun="starts"),
}
MEMORY = "memory_mb"
# By their plain names: what is timed in rounds, while the machine is watched, and all times.
IN_ROUNDS = (*OF_PART, *RATES)
TIMED = (*IN_ROUNDS, *OF_START)
SPEEDS = (*TIMED, MEMORY)


def noun_of(metric: str) -> str:
    """Return the samples of a metric in words."""
    name = plain(metric)
    return "starts" if name in OF_START else NOUN if name in TIMED else "samples"


def speed_sampled(report: Report, metric: str) -> Sampled | str:
    """Return the rounds or starts of a metric in SPEEDS, by the name that gates read, or a reason.

    Peak memory is of one process, and has none.
    """
    name, part = plain(metric), metric.rpartition(".")[0] or "total"
    if name in OF_PART:
        row = report.latency.get(part)  # type: ignore[call-overload]
        return NOT_MEASURED if row is None else OF_PART[name].sampled(row)
    if name in RATES:
        return _rate(report, name)
    starts = report.starts.get(report.headline or "")
    if starts is None or name not in OF_START:
        return NOT_MEASURED
    sampled = OF_START[name](starts)
    return sampled if sampled.columns.size else NOT_MEASURED


def _rate(report: Report, name: str) -> Sampled | str:
    """Return the rounds behind a rate of the engine; a custom graph has samples, not images."""
    if name == "tokens_per_s":
        row = report.latency.get("tokens")
        count = None if row is None else row.tokens
    else:
        row = report.latency.get("total")
        noun = "samples_per_s" if report.outputs else "images_per_s"
        count = None if row is None or name != noun else row.batch
    if row is None or count is None:
        return NOT_MEASURED
    return rate_sampled(count, row.engine.samples_ms)


def speeds(report: Report) -> Mapping[str, float]:
    """Return what was measured of SPEEDS, by the names that gates read."""
    found: dict[str, float] = {}
    for part, row in report.latency.items():
        prefix = "" if part == "total" else f"{part}."
        found |= {f"{prefix}{name}": each.value(row) for name, each in OF_PART.items()}
    for name in (*RATES, *OF_START):
        sampled = speed_sampled(report, name)
        if isinstance(sampled, Sampled):
            found[name] = float(sampled.statistic(sampled.columns))
    starts = report.starts.get(report.headline or "")
    if starts is not None and starts.memory_bytes is not None:
        found[MEMORY] = starts.memory_bytes / MEGABYTE
    return found
