"""Say what the headline of a report does not show: a part of an output, or what a GPU gets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from .formats import DB, metric_text
from .metrics.image import decibels
from .metrics.outputs import OutputAccuracy
from .metrics.parts import HIDDEN_DB, OutputPart
from .report.calibration import ranges
from .report.gates import Gate, GateResult, evaluate, metric_of, parse_gate
from .report.schema import ENGINE, HALF_PRECISION, METRIC_NAMES, QDQ, Report, metrics
from .report.spread import NEAR_QDQ, NO_DIFFERENCE, figure

# By how many dB an engine may be above its Q/DQ graph without being mentioned.
ABOVE_QDQ = {**NEAR_QDQ, "output_sqnr_db": 3.0}
MOST_TEXT = 40  # characters of channels that are named one by one


def remarks(report: Report) -> tuple[str, ...]:
    """Return a sentence for each thing that a reader of the headline has to know besides."""
    return (*hidden_parts(report), *gates_of_copy(report), *above_qdq(report))


def hidden_parts(report: Report) -> Iterator[str]:
    """Yield which part of an output of the headline's its SQNR does not show."""
    for row in report.outputs.get(report.headline or "", ()):
        part = part_of(row)
        if part is None:
            continue
        below = decibels(row.sqnr_db) - decibels(part.sqnr_db)
        if not below <= HIDDEN_DB:
            yield (
                f"{row.output}: {channels_text(part)} {have(part)} {DB(decibels(part.sqnr_db))}, "
                f"{DB(below)} below the whole output ({DB(decibels(row.sqnr_db))}), which does not "
                f"show {them(part)}: {why(part)}. If they count, set a gate on output_part_sqnr_db"
            )


def part_of(row: OutputAccuracy) -> OutputPart | None:
    """Return the worst part of an output; None where it has none, or none was looked for."""
    return None if row.part is msgspec.UNSET else row.part


def channels_text(part: OutputPart) -> str:
    """Return a part's channels, many of them as their number with the first and the last."""
    if len(part.channels) == 1:
        return f"channel {part.channels[0]} (axis {part.axis})"
    text = ranges(part.channels)
    if len(text) > MOST_TEXT:
        text = f"{part.channels[0]} to {part.channels[-1]}, {len(part.channels)} of them"
    return f"channels {text} (axis {part.axis})"


def have(part: OutputPart) -> str:
    return "have" if len(part.channels) > 1 else "has"


def them(part: OutputPart) -> str:
    return "them" if len(part.channels) > 1 else "it"


def why(part: OutputPart) -> str:
    """Return why the whole does not show a part."""
    if part.about_mean:
        return "the values are nearly constant, and this is measured against what they vary by"
    return f"an RMS of {part.rms:.3g} beside {part.largest_rms:.3g}"


def gates_of_copy(report: Report) -> Iterator[str]:
    """Yield the gates that pass on the CPU, and not on what TensorRT engines were built from."""
    for gate, found in failed_on_copy(report):
        measured = "no number" if found.value is None else metric_text(gate.metric, found.value)
        verdict = "fails" if found.verdict == "failed" else "is inconclusive"
        where = "the engine for the CPU" if report.headline == ENGINE else "the Q/DQ graph"
        yield (
            f"gate {gate} passes on {where}, and {verdict} on the FP16 copy that TensorRT engines "
            f"are built from ({measured}): --gate '{found.expression}' judges that"
        )


def failed_on_copy(report: Report) -> list[tuple[Gate, GateResult]]:
    """Return the gates that passed, each with what it finds on the half-precision copy, if less.

    None where a GPU executed the engine that gates read, or nothing was built for one.
    """
    if any(place.startswith("cuda") for place in report.ran.values()):
        return []
    known = metrics(report)
    found = []
    for result in report.gates:
        name = metric_of(result.expression)
        if not result.passed or "." in name or known.get(f"{HALF_PRECISION}.{name}") is None:
            continue
        gate = parse_gate(result.expression, METRIC_NAMES)
        of_copy = replace(gate, metric=f"{HALF_PRECISION}.{name}")
        (judged,) = evaluate([of_copy], known, lambda name, level: figure(report, name, level))
        if not judged.passed:
            found.append((gate, judged))
    return found


def above_qdq(report: Report) -> Iterator[str]:
    """Yield that an engine is clearly closer to FP32 than its Q/DQ graph, and what that means."""
    known = metrics(report)
    for name, least in ABOVE_QDQ.items():
        own, qdq = known.get(f"{ENGINE}.{name}"), known.get(f"{QDQ}.{name}")
        if own is None or qdq is None or math.isinf(own) or math.isinf(qdq):
            continue
        more = qdq - own if name in NO_DIFFERENCE else own - qdq
        if more > least:
            yield (
                f"the engine is {DB(more)} closer to FP32 than its Q/DQ graph "
                f"({metric_text(name, qdq)}): it rounds in other places too, where errors may "
                f"cancel. An engine for a GPU computes what the Q/DQ graph does: a gate on "
                f"{QDQ}.{name} judges that"
            )
