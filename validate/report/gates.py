"""Parse and check gates such as ``psnr_drop<=0.3`` over the flat metric names of a report."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from ...errors import RecipeError, nearest
from ...quantize.facts import SiteRow
from ...runtime.spec import DECODER

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
RAISED = 3  # sites that the advice on an image decoder names
_EXPRESSION = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w.]*)\s*(?P<operator><=|>=|==|<|>)\s*(?P<threshold>\S+)\s*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Gate:
    """Hold ``metric operator threshold``; the threshold is finite, in the metric's unit."""

    metric: str
    operator: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{repr(self.threshold).removesuffix('.0')}"


class GateResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what a gate found; ``value`` is None if not measured or infinite, see ``reason``."""

    expression: str
    value: float | None
    passed: bool
    reason: str | None = None


def parse_gate(text: str, known: Collection[str]) -> Gate:
    """Parse one expression.

    Raises:
        RecipeError: it is malformed, or its metric is not in `known`.
    """
    match = _EXPRESSION.fullmatch(text)
    threshold = _finite(match["threshold"]) if match else None
    if match is None or threshold is None:
        raise RecipeError(
            f"gate {text!r} is not METRIC OPERATOR NUMBER",
            do="write for example psnr_drop<=0.3, with one of <= < >= > ==",
        )
    metric = match["metric"]
    if metric not in known:
        raise RecipeError(
            f"gate {text!r}: there is no metric {metric!r}", do=f"use {nearest(metric, known)}"
        )
    return Gate(metric=metric, operator=match["operator"], threshold=threshold)


def parse_gates(texts: Iterable[str], known: Collection[str]) -> list[Gate]:
    """Parse each text; call it before long work, so that a typing error shows at once."""
    return [parse_gate(text, known) for text in texts]


def metric_of(expression: str) -> str:
    """Return the metric of a gate that was parsed before."""
    match = _EXPRESSION.fullmatch(expression)
    assert match is not None
    return match["metric"]


def evaluate(gates: Iterable[Gate], metrics: Mapping[str, float | None]) -> list[GateResult]:
    """Check each gate; a metric that was not measured fails its gate, with that as the reason."""
    return [_evaluate(gate, metrics.get(gate.metric)) for gate in gates]


def advice(failed: Iterable[GateResult], sites: Iterable[SiteRow]) -> str:
    """Return what to do about failed gates; of an image decoder's, which sites to raise first."""
    if not any(metric_of(gate.expression).startswith("decoder_psnr") for gate in failed):
        return "open the report, then change the recipe or the gate"
    noise = {
        site.name: min(known)
        for site in sites
        if site.graph == DECODER
        and (known := [v for v in (site.weight_sqnr_db, site.activation_sqnr_db) if v is not None])
    }
    worst = sorted(noise, key=lambda name: noise[name])[:RAISED]
    named = ", ".join(f"{name} ({noise[name]:.1f} dB)" for name in worst)
    more = f"exclude those that are rounded most coarsely, {named}; or set " if worst else "set "
    return f"{more}decoder_bits = 32, or change the gate"


def _evaluate(gate: Gate, value: float | None) -> GateResult:
    if value is None or not value > -math.inf:  # NaN and -inf are no measurements
        return GateResult(
            expression=str(gate),
            value=None,
            passed=False,
            reason=f"{gate.metric} was not measured",
        )
    passed = _OPERATORS[gate.operator](value, gate.threshold)
    reason = None if passed else f"{gate.metric} is {value:.6g}, wanted {gate}"
    if passed and math.isinf(value):
        reason = f"{gate.metric} is infinite: no error at all"
    return GateResult(
        expression=str(gate),
        value=value if math.isfinite(value) else None,
        passed=passed,
        reason=reason,
    )


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
