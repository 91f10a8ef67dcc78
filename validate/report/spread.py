"""Find the figures of a report that its own spread does not tell from no difference."""

from __future__ import annotations

from ..intervals.bootstrap import LEVEL
from ..intervals.figure import COUNTED, Figure, plain
from ..intervals.figures import sampled
from ..intervals.speeds import IN_ROUNDS, SPEEDS
from .schema import ENGINE, QDQ, Report, metrics

INCONCLUSIVE = "inconclusive"
CHARTED = ("speedup", "latency_ms")  # of all speeds, with the figures
# What a figure is without any difference.
NO_DIFFERENCE = {"psnr_drop": 0.0, "ssim_drop": 0.0}

# By how many dB an engine may be below its Q/DQ graph: rounding outputs to uint8 doubles its noise.
NEAR_QDQ = {"psnr_drop": 0.25, "output_sqnr_db": 6.0}


def figures(report: Report) -> dict[str, Figure]:
    """Return each measured metric with its interval, by candidate or part and name.

    Sizes are no samples. Plain names, which read the headline candidate, are left out, and so are
    high percentiles, rates and starts, which a report has elsewhere.
    """
    left_out = {*COUNTED, *SPEEDS} - {*CHARTED}
    return {
        name: Figure.of(value, sampled(report, name), count=measured_on(report, name))
        for name, value in metrics(report).items()
        if value is not None and plain(name) not in left_out and ("." in name or name in CHARTED)
    }


def figure(report: Report, metric: str, level: float = LEVEL) -> Figure | None:
    """Return a metric with its interval by the name that gates read; None if not measured."""
    if level == LEVEL:
        for name in (metric, f"{report.headline}.{metric}"):
            if name in report.figures:
                return report.figures[name]
    value = metrics(report).get(metric)
    if value is None:
        return None
    return Figure.of(value, sampled(report, metric), level, count=measured_on(report, metric))


def measured_on(report: Report, metric: str) -> int:
    """Return how many images or samples a metric is of; 0 if a report does not say it."""
    candidate = metric.rpartition(".")[0] or report.headline
    if plain(metric) in ("site_sqnr_db", *SPEEDS):  # of a few of them, or of rounds
        return 0
    if candidate in report.accuracy:
        return len(report.accuracy[candidate].psnr.each)
    if candidate in report.generation:
        return len(report.data.pictures)
    return len(report.data.validation) if candidate in report.outputs else 0


def inconclusive_metrics(report: Report) -> tuple[str, ...]:
    """Return the names of metrics that may be chance, as gates read them.

    A drop is one if its interval includes 0 or cannot be had, a speedup if its interval includes 1.
    """
    names = []
    if report.headline in report.accuracy:
        for name, nothing in NO_DIFFERENCE.items():
            found = figure(report, name)
            if found is not None and found.value is not None and may_be(found, nothing):
                names.append(name)
    for part, row in report.latency.items():
        if row.speed.verdict == INCONCLUSIVE:
            names.append("speedup" if part == "total" else f"{part}.speedup")
    return tuple(names)


def busy_text(report: Report, metric: str) -> str:
    """Return that a metric was timed on a busy machine, and what others did; "" for all others."""
    if plain(metric) not in IN_ROUNDS or not report.busy:
        return ""
    return f"timed on a busy machine: {report.busy}"


def below_qdq(report: Report) -> float | None:
    """Return by how many dB the engine is below its Q/DQ graph; None if near or perhaps by chance.

    It is below by chance if the intervals of both meet, or one has none.
    """
    for name, near in NEAR_QDQ.items():
        pair = [report.figures.get(f"{candidate}.{name}") for candidate in (QDQ, ENGINE)]
        # What is lost grows with a drop, and falls with decibels.
        lost = [ends for each in pair if (ends := _loss(each, name in NO_DIFFERENCE)) is not None]
        if len(lost) == len(pair):
            (_, before, most), (least, after, _) = lost
            if after - before > near and least > most:
                return after - before
    return None


def _loss(found: Figure | None, drop: bool) -> tuple[float, float, float] | None:
    """Return the low end, value and high end of what is lost; None without an interval."""
    if found is None or found.value is None or found.low is None or found.high is None:
        return None
    if drop:
        return found.low, found.value, found.high
    return -found.high, -found.value, -found.low


def may_be(found: Figure, value: float) -> bool:
    """Return whether a figure may as well be `value`: one that is exactly that is no chance."""
    if found.value == value:
        return False
    if found.low is None or found.high is None:
        return True
    return found.low <= value <= found.high
