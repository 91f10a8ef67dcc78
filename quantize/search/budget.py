"""Read the budgets that a search may spend, and count what a format costs at a site."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import RecipeError
from ...graph.sites import Site
from ...numerics.scheme import WeightFormat

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TABLE_ENTRY = 96  # of a table's name, type, shape and place, beside the site's name
Form = WeightFormat | None


@dataclass(frozen=True, slots=True)
class Budget:
    """`most` is bytes of weights.safetensors, or bits a weight on average."""

    kind: Literal["size", "avg_bits"]
    most: float
    text: str


def parse_budget(text: str) -> Budget:
    """Read a budget: `avg_bits<=5` or `size<=20MB` (B, kB, MB, GB, KiB, MiB, GiB).

    Raises:
        RecipeError: anything else.
    """
    found = re.fullmatch(r"\s*(avg_bits|size)\s*<=\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", text)
    if found is None:
        raise RecipeError(
            f"{text!r} is no budget", where="--budget", do="write avg_bits<=5 or size<=20MB"
        )
    kind, number, unit = found.groups()
    if kind == "avg_bits":
        if unit:
            raise RecipeError(f"{text!r}: bits have no unit", where="--budget", do="leave it out")
        return Budget("avg_bits", float(number), text.strip())
    if unit not in UNITS:
        raise RecipeError(
            f"{text!r} has no unit of bytes that is known",
            where="--budget",
            do=f"use one of {', '.join(UNITS)}",
        )
    return Budget("size", float(number) * UNITS[unit], text.strip())


def weights_of(site: Site) -> int:
    return math.prod(site.weight_shape)


def form_bits(form: Form, float_bits: int) -> int:
    return float_bits if form is None else form.bits


def form_bytes(site: Site, form: Form, float_bits: int) -> int:
    """Return bytes of a site's codes, scales and ratios in weights.safetensors.

    A logarithmic grid has another table, whose entry in the header is counted, amply: a budget
    holds for the file. `float_bits` are those of a weight that stays float.
    """
    count = weights_of(site)
    if form is None:
        return count * float_bits // 8
    # A Gemm's weight lies either way.
    rows = {"MatMul": site.weight_shape[-1], "Gemm": max(site.weight_shape)}.get(
        site.op, site.weight_shape[0]
    )
    groups = rows if form.block is None else count // form.block
    scales = 4 * (1 if form.granularity == "per_tensor" else groups)
    table = scales + len(site.name) + TABLE_ENTRY if form.grid == "log" else 0
    return -(-count * form.bits // 8) + scales + table


def form_name(form: Form, float_bits: int) -> str:
    if form is None:
        return f"float{float_bits}"
    blocks = f"/{form.block}" if form.block else ""
    return f"{'log' if form.grid == 'log' else 'int'}{form.bits}{blocks}"


def require_reachable(budget: Budget, smallest: float) -> None:
    """Raises RecipeError with the least that the formats can reach."""
    if smallest <= budget.most:
        return
    least = f"{smallest:.3g} bits" if budget.kind == "avg_bits" else f"{smallest:,.0f} bytes"
    raise RecipeError(
        f"{budget.text} cannot be reached: the smallest is {least}",
        where="--budget",
        do="raise it, or allow fewer bits or more sites",
    )


def parse_all(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Raises RecipeError for none, or for one that cannot be read."""
    if not texts:
        raise RecipeError("no budget", do="give --budget 'avg_bits<=5' or 'size<=20MB'")
    return tuple(parse_budget(text) for text in texts)
