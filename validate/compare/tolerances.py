"""Read tolerances by metric: from a file, and from the limits of `--max-regression`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ...errors import RecipeError, intended
from ...workspace.files import UNDECODABLE, said
from .rules import POINTS, RULES, Rule

SCHEMA = "arvg-trt/tolerances/v1"
INFORM = "inform"
_AMOUNT = re.compile(r"(?P<number>[0-9.][0-9.eE+-]*)\s*(?P<unit>.*)", re.ASCII)
EXAMPLE = "write for example psnr:0.1dB, kl:10% of the baseline, or top1:0.5pp in points"


def read_tolerances(path: Path) -> tuple[Rule, ...]:
    """Return the rules with the tolerances of a TOML file; a metric without one keeps its own.

    The file has the key ``schema`` and, by metric, an amount with its unit ("0.1 dB"), a share of
    the baseline ("10 %"), or "inform" for one that fails nothing.

    Raises:
        RecipeError: it cannot be read, is of another schema, or names no metric that is compared.
    """
    where = str(path)
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        raise RecipeError("no such file", where=where, do="name a file of tolerances") from None
    except UNDECODABLE as error:
        raise RecipeError(
            f"cannot be read: {said(error)}", where=where, do='write metrics as psnr = "0.1 dB"'
        ) from error
    schema = found.pop("schema", None)
    if schema != SCHEMA:
        raise RecipeError(
            f"its schema is {schema!r}, this version reads {SCHEMA!r}",
            where=where,
            do=f'begin it with schema = "{SCHEMA}"',
        )
    require_known(found, where)
    informing = {metric for metric, text in found.items() if text == INFORM}
    changed = limited({m: text for m, text in found.items() if m not in informing}, where)
    return tuple(
        replace(rule, decides=False) if rule.metric in informing else changed.get(rule.metric, rule)
        for rule in RULES
    )


def parse_limits(text: str, rules: Sequence[Rule] = RULES) -> tuple[Rule, ...]:
    """Return the rules of `--max-regression`: METRIC:AMOUNT, with commas between.

    The metrics that it names must be decided, and alone decide.

    Raises:
        RecipeError: it is malformed, or names no metric that is compared.
    """
    where = "--max-regression"
    given: dict[str, str] = {}
    for part in text.split(","):
        metric, colon, amount = (word.strip() for word in part.partition(":"))
        if not (metric and colon and amount):
            raise RecipeError(f"{part.strip()!r} is not METRIC:AMOUNT", where=where, do=EXAMPLE)
        if metric in given:
            raise RecipeError(f"{metric} is there twice", where=where, do="give it one limit")
        given[metric] = amount
    changed = limited(given, where)
    return tuple(
        replace(changed[rule.metric], decides=True, required=True)
        if rule.metric in changed
        else replace(rule, decides=False)
        for rule in rules
    )


def limited(given: Mapping[str, str], where: str) -> dict[str, Rule]:
    """Return the rules of metrics with the tolerances that are given as text."""
    require_known(given, where)
    by_metric = {rule.metric: rule for rule in RULES}
    return {m: with_tolerance(by_metric[m], text, where) for m, text in given.items()}


def require_known(metrics: Mapping[str, str], where: str) -> None:
    """Raise RecipeError for the first metric that is not compared."""
    known = [rule.metric for rule in RULES]
    for metric in metrics:
        if metric not in known:
            raise RecipeError(
                f"there is no metric {metric!r} that is compared",
                where=where,
                do=f"use {intended(metric, known)}",
            )


def with_tolerance(rule: Rule, text: str, where: str) -> Rule:
    """Return a rule with the tolerance of a text: a number and its unit, or per cent.

    Raises:
        RecipeError: no number of 0 or more, or a unit that the metric does not have.
    """
    match = _AMOUNT.fullmatch(text.strip())
    try:
        amount = float(match["number"]) if match else -1.0
    except ValueError:
        amount = -1.0
    if match is None or not 0 <= amount < 1e9:
        raise RecipeError(f"{rule.metric}: {text!r} is no amount", where=where, do=EXAMPLE)
    unit = match["unit"].strip()
    if unit == "%":
        return replace(rule, tolerance=amount / 100, relative=True, decides=True)
    own = rule.text(0.0).partition(" ")[2]
    if own == "%" and unit == POINTS:
        return replace(rule, tolerance=amount / 100, relative=False, decides=True)
    if unit not in ("", own) or (own == "%" and amount):
        units = f"{own!r} or " if own not in ("", "%") else f"{POINTS!r} or " if own else ""
        raise RecipeError(
            f"{rule.metric}: {text!r} is not in {units}'%' of the baseline", where=where, do=EXAMPLE
        )
    return replace(rule, tolerance=amount, relative=False, decides=True)
