"""Show how long rounds and starts take, what is made in a second, and the machine meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..formats import MS, TIMES, size
from ..intervals.figure import Figure
from ..intervals.timing import PERCENTILES, percentiles, rates
from ..machine.start import Starts
from ..machine.watch import MachineLoad
from ..metrics.latency import Latency
from .cells import CANDIDATES
from .interval_tables import TITLE
from .page import Badge, Cell, Table
from .schema import FP32, Report

OF_STARTS = (
    "Of processes that do nothing else: from the call that opens the graphs, and checks the "
    "digests of a tokenizer's or generator's, to where they can be used, and from there to the "
    "first image, or the first sample of your own graphs. Libraries were loaded before, and files "
    "come from the system's cache. Memory is the highest peak above what Python and libraries take."
)
OF_GPU = (
    "That of the GPU is above what was in use before, asked for again and again; others on it "
    "count."
)
OF_MACHINE = (
    "Processors that other processes kept busy: all the work of the processors, as the system "
    "counts it, less that of this process, before, during and after the timed rounds. Beyond a "
    "tenth of all processors the machine is called busy. The load average counts this process "
    "too."
)
RATES = {
    "tokens_per_s": "Tokens a second, without the image decoder",
    "images_per_s": "Images a second",
    "samples_per_s": "Samples a second",
}


def timing_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables of all that was timed; some may have no rows."""
    return _latency(report), _rates(report), _starts(report), _machine(report)


def _latency(report: Report) -> Table:
    def verdict(text: str) -> Cell:
        return text if text == "faster" else Badge(text, "warn")

    found = report.percentiles or percentiles(report.latency)
    rows: list[tuple[Cell, ...]] = []
    for part, row in report.latency.items():
        speed = (
            TIMES(row.speed.ratio),
            f"{TIMES(row.speed.low)} to {TIMES(row.speed.high)}",
            verdict(row.speed.verdict),
        )
        rows += [(f"{part}, FP32", *_times(row.fp32, found, f"{part}.fp32"), "", "", "")]
        rows += [(f"{part}, engine", *_times(row.engine, found, f"{part}.engine"), *speed)]
    unbound = {
        f"p{percent}: {each.why}"
        for percent in PERCENTILES
        for name, each in found.items()
        if name.endswith(f".p{percent}_ms") and each.why
    }
    why = f" Without an interval: {'; '.join(sorted(unbound))}." if unbound else ""
    return Table(
        title="Latency",
        header=("Part", "p50", "p90", "p99", "min", "Speed", TITLE, "Verdict"),
        rows=tuple(rows),
        caption=f"On {report.cpu.model}: {_settings(report)}. A speed above 1 is faster. "
        f"In brackets: {TITLE.lower()}.{why}{_busy(report)}",
    )


def _times(own: Latency, found: Mapping[str, Figure], name: str) -> tuple[str, ...]:
    values = (own.p50_ms, own.p90_ms, own.p99_ms)
    cells = (
        f"{MS(value)}{_brackets(found.get(f'{name}.p{percent}_ms'))}"
        for value, percent in zip(values, PERCENTILES, strict=True)
    )
    return (*cells, MS(own.min_ms))


def _brackets(found: Figure | None, digits: str = ".2f") -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f" ({found.low:{digits}} to {found.high:{digits}})"


def _busy(report: Report) -> str:
    return f" Timed on a busy machine: {report.busy}." if report.busy else ""


def _settings(report: Report) -> str:
    """Return what was timed and how; parts that were timed alike are said once."""
    fed = "image" if report.accuracy or report.generation else "input"
    parts: dict[str, list[str]] = {}
    for part, row in report.latency.items():
        shape = " \u00d7 ".join(str(n) for n in row.shape)
        threads = f"{row.threads} threads" if row.threads else "all threads"
        parts.setdefault(f"{fed} {shape}, {threads}, {row.engine.n} rounds", []).append(part)
    if len(parts) == 1:
        return next(iter(parts))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in parts.items())


def _rates(report: Report) -> Table:
    found = report.rates or rates(report.latency, "samples" if report.outputs else "images")

    def cell(side: str, name: str) -> str:
        each = found.get(f"{side}.{name}")
        if each is None or each.value is None:
            return ""
        return f"{each.value:.4g}{_brackets(each, '.4g')}"

    rows = ((title, cell("fp32", name), cell("engine", name)) for name, title in RATES.items())
    return Table(
        title="Rates",
        header=("What", "FP32", "Engine"),
        rows=tuple(row for row in rows if any(row[1:])),
        caption=f"By the median round; in brackets: {TITLE.lower()}.{_busy(report)}",
    )


def _starts(report: Report) -> Table:
    names = {FP32: "FP32", **CANDIDATES}
    shown = {key: report.starts[key] for key in names if key in report.starts}
    count = max((len(each.load_ms) for each in shown.values()), default=0)

    def memory(values: Sequence[int | None]) -> tuple[str, ...]:
        return tuple("" if value is None else size(value) for value in values)

    every = list(shown.values())
    rows = (
        ("Opening the graphs", *(_spread(each.load_ms) for each in every)),
        (
            f"The first {made_first(report)} behind that",
            *(_spread(each.first_ms) for each in every),
        ),
        ("Memory at its peak", *memory([each.memory_bytes for each in every])),
        ("Memory of the GPU at its peak", *memory([each.device_bytes for each in every])),
    )
    on_gpu = f" {OF_GPU}" if any(each.device_bytes is not None for each in every) else ""
    of = f" Median of {count} starts, in brackets the least and the most."
    return Table(
        title="Start",
        header=("What", *(names[key] for key in shown)),
        rows=tuple(row for row in rows if any(row[1:])),
        caption=f"{OF_STARTS}{on_gpu}{of}",
    )


def made_first(report: Report) -> str:
    """Return what a start is measured to: an image, or a sample of one's own graphs."""
    return "sample" if report.outputs else "image"


def _spread(times: Sequence[float]) -> str:
    if not times:
        return ""
    middle = Starts(load_ms=tuple(times)).load_median
    return f"{MS(middle)} ({min(times):.2f} to {max(times):.2f})"


def _machine(report: Report) -> Table:
    found = report.machine
    header = ("What", "Before", "During", "After")
    if found is None:
        return Table(title="The machine meanwhile", header=header, rows=())
    rows = (_others(found), *_load_and_clocks(found), *_gpu(found))
    return Table(
        title="The machine meanwhile",
        header=header,
        rows=tuple(row for row in rows if any(map(str, row[1:]))),
        caption=OF_MACHINE,
    )


def _others(found: MachineLoad) -> tuple[Cell, ...]:
    every = (found.others_before, found.others_during, found.others_after)
    cells: list[Cell] = ["" if each is None else f"{each:.2f}" for each in every]
    if found.busy:
        at = max(range(3), key=lambda k: every[k] or 0.0)
        cells[at] = Badge(f"{every[at]:.2f}, busy", "warn")
    return (f"Processors of {found.processors} kept busy by others", *cells)


def _load_and_clocks(found: MachineLoad) -> tuple[tuple[Cell, ...], ...]:
    rule = f", {found.governor}" if found.governor else ""
    return (
        ("Load average of a minute", _number(found.load_before), "", _number(found.load_after)),
        (
            f"Clock of the processors, mean{rule}",
            _number(found.megahertz_before, " MHz"),
            "",
            _number(found.megahertz_after, " MHz"),
        ),
    )


def _gpu(found: MachineLoad) -> tuple[tuple[Cell, ...], ...]:
    before, after = found.gpu_before, found.gpu_after
    if before is None or after is None:
        return ()
    return (
        ("Clock of the GPU", *_pair(before.megahertz, after.megahertz, " MHz")),
        (
            "Clock of its memory",
            *_pair(before.memory_megahertz, after.memory_megahertz, " MHz"),
        ),
        ("Share of time that it computed", *_pair(before.busy_percent, after.busy_percent, " %")),
    )


def _pair(before: float | None, after: float | None, unit: str) -> tuple[str, str, str]:
    return _number(before, unit), "", _number(after, unit)


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.0f}{unit}" if unit else f"{value:.2f}"
