"""Parse and check gates such as ``psnr_drop<=0.3`` over the flat metric names of a report.

``psnr_drop<=0.3@95%`` reads the bad end of the metric's interval: it passes if all of the interval
does, fails if none of it does, and is inconclusive between. ``23<=fid<=23.9`` is a band.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from ...errors import RecipeError, bounded, intended
from ..intervals.bootstrap import more_to_decide
from ..intervals.figure import COUNTED, WITHOUT_INTERVAL, Figure, plain
from ..intervals.speeds import noun_of

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_LEVEL = r"\s*(?:@\s*(?P<level>\S+?)\s*%)?\s*"
_METRIC = r"(?P<metric>[A-Za-z_][\w.]*)"
_EXPRESSION = re.compile(
    rf"\s*{_METRIC}\s*(?P<operator><=|>=|==|<|>)\s*(?P<threshold>[^\s@]+){_LEVEL}", re.ASCII
)
_BAND = re.compile(
    rf"\s*(?P<least>[^\s<@]+)\s*<=\s*{_METRIC}\s*<=\s*(?P<most>[^\s@]+){_LEVEL}", re.ASCII
)
LEVELS = (50.0, 99.9)  # per cent
Verdict = Literal["passed", "failed", "inconclusive"]
FigureAt = Callable[[str, float], Figure | None]  # a metric's interval at a level


@dataclass(frozen=True, slots=True)
class Gate:
    """Hold ``metric operator threshold``; the threshold is finite, in the metric's unit.

    A band has the operator ``<=`` and a ``least`` beside it. ``level``, in per cent, asks that the
    whole interval is within.
    """

    metric: str
    operator: str
    threshold: float
    least: float | None = None
    level: float | None = None

    def __str__(self) -> str:
        before = "" if self.least is None else f"{_number(self.least)}<="
        behind = "" if self.level is None else f"@{_number(self.level)}%"
        return f"{before}{self.metric}{self.operator}{_number(self.threshold)}{behind}"

    def holds(self, value: float) -> bool:
        """Return whether a value is within; NaN never is."""
        above = self.least is None or value >= self.least
        return above and _OPERATORS[self.operator](value, self.threshold)


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """Say what a gate found; ``value`` is None if not measured or infinite, see ``reason``.

    ``passed`` is whether the verdict is that. A gate that asks for a level has the interval that it
    read of ``n`` samples; where it is inconclusive, ``more`` samples would decide if they are like
    those.
    """

    expression: str
    value: float | None
    passed: bool
    verdict: Verdict
    reason: str | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    more: int | None = None


def parse_gate(text: str, known: Collection[str], of: str = "") -> Gate:
    """Parse one expression; `known` are the metrics of a kind of models, which `of` names.

    Raises:
        RecipeError: it is malformed, its metric is not in `known`, or no interval can be had of it.
    """
    match = _match(text)
    parts = match.groupdict() if match else {}
    numbers = {key: _finite(parts[key]) for key in ("threshold", "least", "most") if key in parts}
    if match is None or None in numbers.values():
        raise RecipeError(
            f"gate {text!r} is not METRIC OPERATOR NUMBER, nor NUMBER<=METRIC<=NUMBER",
            do="write for example psnr_drop<=0.3, with one of <= < >= > ==, or psnr_drop<=0.3@95% "
            "for the bad end of its interval",
        )
    metric = parts["metric"]
    if metric not in known:
        names = known if "." in metric else [name for name in known if "." not in name]
        what = f"gate {text!r}: there is no metric {metric!r}{f' of {of}' if of else ''}"
        likely = [name for name in names if metric in name] or names  # `sqnr`: each that has it
        raise RecipeError(what, do=f"use {intended(metric, likely)}")
    least, threshold = numbers.get("least"), numbers.get("threshold", numbers.get("most"))
    assert threshold is not None
    if least is not None and not least <= threshold:
        raise RecipeError(f"gate {text!r}: nothing is in that band", do="put the lower end first")
    level = _level(text, parts["level"]) if parts["level"] else None
    found = Gate(metric, parts.get("operator", "<="), threshold, least, level)
    if level is not None:
        _require_interval(text, found)
    return found


def _level(text: str, written: str) -> float:
    level = _finite(written)
    if level is None or not LEVELS[0] <= level <= LEVELS[1]:
        raise RecipeError(
            f"gate {text!r}: {written} % is no level of confidence",
            do=f"use one from {LEVELS[0]:g} to {LEVELS[1]:g}, such as @95%",
        )
    return level


def _require_interval(text: str, gate: Gate) -> None:
    reason = WITHOUT_INTERVAL.get(plain(gate.metric))
    if reason is not None:
        raise RecipeError(
            f"gate {text!r}: {gate.metric} has no interval, for {reason}",
            do=f"write {str(gate).partition('@')[0]}",
        )
    if gate.operator == "==":
        raise RecipeError(f"gate {text!r}: no interval is one number", do="use a band")


def parse_gates(texts: Iterable[str], known: Collection[str], of: str = "") -> list[Gate]:
    """Parse each text; call it before long work, so that a typing error shows at once."""
    return [parse_gate(text, known, of) for text in texts]


def metric_of(expression: str) -> str:
    """Return the metric of a gate; of a text that is none, as a report may hold, the text."""
    match = _match(expression)
    return expression if match is None else match["metric"]


def _match(text: str) -> re.Match[str] | None:
    return _EXPRESSION.fullmatch(text) or _BAND.fullmatch(text)


def evaluate(
    gates: Iterable[Gate], metrics: Mapping[str, float | None], figure_at: FigureAt | None = None
) -> list[GateResult]:
    """Check each gate; a metric that was not measured fails its gate, with that as the reason.

    `figure_at` gives a metric's interval at a level in (0, 1), for gates that ask for one.
    """
    return [_evaluate(gate, metrics.get(gate.metric), figure_at) for gate in gates]


def verdict_text(results: Iterable[GateResult], verdict: Verdict) -> str:
    """Return the gates of a verdict, each with what was measured; of many the first few."""
    of_it = (gate for gate in results if gate.verdict == verdict)
    texts = [f"gate {g.expression}" + (f" ({g.reason})" if g.reason else "") for g in of_it]
    return bounded(texts, "gates")


def needs(more: int | None, metric: str, about: str = "") -> str:
    """Return how many samples more would decide what an interval leaves open, with their noun."""
    noun = noun_of(metric)
    if more is None:
        return f"no number of {noun} decides"
    return f"{about}{more} more {noun if more != 1 else noun.removesuffix('s')} would decide"


def chance_text(expression: str) -> str:
    """Return that a gate's verdict may be chance, with the gate that decides by the interval."""
    text = "judged by the figure alone, which may be chance"
    gate = _match(expression)
    if gate is None or gate["level"] or gate.groupdict().get("operator") == "==":
        return text
    if plain(gate["metric"]) in WITHOUT_INTERVAL:
        return text
    return f"{text}: {expression}@95% decides by its interval"


def _evaluate(gate: Gate, value: float | None, figure_at: FigureAt | None) -> GateResult:
    if value is None or not value > -math.inf:  # NaN and -inf are no measurements
        return _result(gate, None, "failed", f"{gate.metric} was not measured")
    if gate.level is not None and plain(gate.metric) not in COUNTED and math.isfinite(value):
        found = figure_at(gate.metric, gate.level / 100) if figure_at else None
        return _by_interval(gate, value, found)
    passed = gate.holds(value)
    reason = None if passed else f"{gate.metric} is {value:.6g}"
    if passed and math.isinf(value):
        reason = f"{gate.metric} is infinite: no error at all"
    return _result(gate, value, "passed" if passed else "failed", reason)


def _by_interval(gate: Gate, value: float, figure: Figure | None) -> GateResult:
    if figure is None or figure.low is None or figure.high is None:
        why = figure.why if figure and figure.why else "nothing says what its samples are"
        reason = f"{gate.metric} is {value:.6g} and has no interval ({why})"
        return _result(gate, value, "inconclusive", reason, figure)
    text = f"{gate.metric} is {value:.6g}, {figure.low:.6g} to {figure.high:.6g}"
    ends = [gate.holds(figure.low), gate.holds(figure.high)]
    # A band may lie inside an interval whose ends are both outside.
    inside = gate.least is not None and figure.low < gate.threshold and figure.high > gate.least
    if all(ends):
        return _result(gate, value, "passed", None, figure)
    if not any(ends) and not inside:
        return _result(gate, value, "failed", text, figure)
    limits = [limit for limit in (gate.least, gate.threshold) if limit is not None]
    counts = [
        more_to_decide(figure.n, value, figure.low, figure.high, limit, (gate.level or 95) / 100)
        for limit in limits
        if figure.low <= limit <= figure.high
    ]
    more = None if None in counts else max((n for n in counts if n is not None), default=None)
    reason = f"{text} over {figure.n} {noun_of(gate.metric)}: {needs(more, gate.metric, 'about ')}"
    return _result(gate, value, "inconclusive", reason, figure, more)


def _result(
    gate: Gate,
    value: float | None,
    verdict: Verdict,
    reason: str | None,
    figure: Figure | None = None,
    more: int | None = None,
) -> GateResult:
    return GateResult(
        expression=str(gate),
        value=value if value is not None and math.isfinite(value) else None,
        passed=verdict == "passed",
        verdict=verdict,
        reason=reason,
        low=figure.low if figure else None,
        high=figure.high if figure else None,
        n=figure.n if figure else None,
        more=more,
    )


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
