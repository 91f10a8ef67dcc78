"""Define what quantization leaves in files: facts of sites and graphs for reports, the plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import RecipeError
from ..graph.sites import NO_WEIGHT
from ..numerics.scheme import CacheGranularity, CacheType, Plan
from ..workspace.files import decode_json

NO_WEIGHTS = ("float16", NO_WEIGHT)  # of sites whose weight is not quantized


class SiteRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a site's formats as text, its weight's SQNR in dB, and why it is not quantized.

    ``weight_sqnr_db`` is None if the weight is not quantized or is represented exactly;
    ``activation_sqnr_db`` is that of rounding its input, where it was measured.
    """

    name: str
    graph: str
    weight: str
    activation: str
    weight_sqnr_db: float | None = None
    activation_sqnr_db: float | None = None
    reason: str | None = None


class OverflowTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Name a tensor that comes near the end of float16, and the nodes that make or read it."""

    graph: str
    tensor: str
    max: float
    nodes: tuple[str, ...]


class CacheRow(msgspec.Struct, frozen=True, kw_only=True):
    """Say how an attention stores keys and values, and their SQNR in dB where scales round them.

    The SQNRs are of samples that the scales were not fitted to.
    """

    name: str
    type: CacheType
    keys: CacheGranularity | None = None
    values: CacheGranularity | None = None
    key_sqnr_db: float | None = None
    value_sqnr_db: float | None = None


class QuantizationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage; ``quantized`` counts sites, ``fp32_tensors`` are overflow risks.

    ``caches`` are of a generator whose keys and values are not stored as they were exported.
    """

    sites: tuple[SiteRow, ...]
    packed_bytes: int
    fp32_bytes: int
    quantized: int
    fp32_tensors: tuple[OverflowTensor, ...] = ()
    caches: tuple[CacheRow, ...] | msgspec.UnsetType = msgspec.UNSET


class SiteCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Count the sites ``of`` a model that are ``quantized``, and why the others are not.

    Of ``weights_only`` the input stays in high precision; of those in ``high_precision`` all does,
    by its reason, the most frequent first.
    """

    quantized: int
    of: int
    weights_only: int
    high_precision: dict[str, int]


NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


def count_sites(rows: Sequence[SiteRow]) -> SiteCounts:
    """Count the rows by what is quantized; reasons that differ in a number alone are one."""
    high = [row for row in rows if row.weight in NO_WEIGHTS and row.activation == "float"]
    only = [row for row in rows if row.weight not in NO_WEIGHTS and row.activation == "float"]
    alike: dict[tuple[str, ...], Counter[str]] = {}
    for row in high:
        reason = row.reason or "as the plan says"
        alike.setdefault(tuple(NUMBER.split(reason)), Counter())[reason] += 1
    named: Counter[str] = Counter()
    for found in alike.values():
        named[common_text(list(found))] += found.total()
    return SiteCounts(
        quantized=len(rows) - len(high),
        of=len(rows),
        weights_only=len(only),
        high_precision=dict(sorted(named.items(), key=lambda item: -item[1])),
    )


def common_text(texts: Sequence[str]) -> str:
    """Return texts that differ in numbers alone as one, with … for each number that differs."""
    numbers = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    kept = iter([each[0] if len(set(each)) == 1 else "…" for each in numbers])
    return NUMBER.sub(lambda _: next(kept), texts[0])


def read_plan(path: Path) -> Plan:
    """Read a plan.json, which a person may have edited; its entries are not checked yet.

    Raises:
        RecipeError: no such file, or not of that form.
    """
    do = "see quantize/NAME/plan.json for the form"
    return decode_json(path, Plan, do=do, error=RecipeError)
