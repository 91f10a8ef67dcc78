"""Define what a build records of the sites that it timed: the times, and what was kept."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...errors import BuildError
from ...numerics.scheme import Plan
from .pairs import Pairs, PairVerdict


class SpeedRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Compare sites of a graph that are computed alike with and without their rounded inputs.

    Times in ms are of all runs of one image or sample. ``ratio`` is how many times faster they are
    with them; ``low`` and ``high`` are the ends of its interval of 95 %, None of a prediction.
    ``verdict`` says whether the engine rounds the inputs of these sites: not if it is
    "inconclusive" or "removed".
    """

    graph: str
    sites: tuple[str, ...]
    unquantized_ms: float
    quantized_ms: float
    ratio: float
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    verdict: PairVerdict
    reason: str | None = None


class KeptIfFaster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold which sites keep their rounded inputs, because they are faster by `factor` with them.

    Times were "measured" on this ``machine``, or are "predicted" for it by a roofline, against the
    type ``unquantized``. ``model`` compares the whole model as it was built with its FP32 graphs;
    None where that was not timed. ``is_quantized`` is False if no site is, because none gains, or
    because the whole does not: then the engine is of the unquantized graphs.
    """

    factor: float
    source: Literal["measured", "predicted"]
    machine: str
    unquantized: Literal["fp32", "fp16"]
    rows: tuple[SpeedRow, ...]
    model: SpeedRow | None = None
    is_quantized: bool = True

    def kept(self, graph: str) -> frozenset[str]:
        """Return the sites of a graph whose inputs the engine rounds."""
        rows = [row for row in self.rows if row.graph == graph and row.verdict == "kept"]
        return frozenset(site for row in rows for site in row.sites)

    def removed(self, graph: str) -> frozenset[str]:
        """Return the sites of a graph whose inputs it does not round, though planned so."""
        rows = [row for row in self.rows if row.graph == graph and row.verdict != "kept"]
        return frozenset(site for row in rows for site in row.sites)

    @property
    def summary(self) -> str:
        """Return one line on what was decided."""
        count = sum(len(row.sites) for row in self.rows)
        kept = sum(len(row.sites) for row in self.rows if row.verdict == "kept")
        if not self.is_quantized:
            why = "none gains" if self.model is None else f"the whole is {self.model.ratio:.2f}"
            return f"{self.source}: unquantized ({count} sites timed; {why})"
        return f"{self.source}: {kept} of {count} sites are faster by {self.factor:g} and rounded"


def speed_row(
    graph: str,
    sites: tuple[str, ...],
    pairs: Pairs,
    verdict: PairVerdict,
    reason: str | None = None,
) -> SpeedRow:
    """Return the row of sites that were timed."""
    plain, quantized = pairs.medians
    speed = pairs.speed
    return SpeedRow(
        graph=graph,
        sites=sites,
        unquantized_ms=plain,
        quantized_ms=quantized,
        ratio=speed.ratio,
        low=speed.low,
        high=speed.high,
        pairs=len(pairs),
        verdict=verdict,
        reason=reason,
    )


def nothing_rounded(plan: Plan) -> BuildError:
    """Return the error of a plan without rounded inputs, of which none can be kept."""
    weights = any(entry.weight is not None for entry in plan.sites)
    return BuildError(
        f"{'weights alone are' if weights else 'nothing is'} quantized: there are no rounded "
        "inputs to keep or to leave out",
        where="keep_if_faster",
        do="leave keep_if_faster out",
    )
