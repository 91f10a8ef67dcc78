"""Tables of a report on its engines: what they are, compute in, and do not run as planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby

from ...engines.facts import EXECUTED, EngineProof, EngineRow
from ..formats import MS, SECONDS, SHARE, TIMES, size
from ..measure.sizes import WEIGHTS_OF_ALL
from .cells import joined, numbered, stem
from .page import Badge, Level, Table
from .schema import Report

OF_ENGINES = (
    "Proved: the builder's layer list shows an INT8 kernel for the site. Numbered graphs that are "
    "alike share a line, with their sizes and times added up. A TensorRT engine holds its kernels, "
    "and weights in the forms that these read: more than its constants add up to."
)
OF_PROOFS = (
    "Read off the builder's layer list, not run. Shares are of the multiplications of all products "
    "at the shapes that the engine is built for; INT4 weights are those multiplied in half "
    "precision. Kernels that only convert change types or move data. Kernels and constants of "
    "numbered graphs that are alike are added up."
)


OF_SPEEDS = (
    "Times of one image or sample, of sites that are computed alike together. Both forms ran in "
    "turn, so that each pair of times has a ratio; shown are medians, and the interval of 95 % of "
    "the ratio's. Sites that are not proved faster by the factor do not round their inputs in this "
    "engine. Predicted times are a roofline's, which knows no interval."
)


def engine_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables on engines."""
    return _engines(report), _speeds(report), _proofs(report), _exceptions(report)


def _engines(report: Report) -> Table:
    def status(row: EngineRow) -> Badge:
        return Badge(row.status, "good" if row.status == EXECUTED else "warn")

    return Table(
        title="Engines",
        header=(
            *("Target", "Backend", "Graph", "Precision", "Size", "Smaller than FP32", "Build"),
            *("INT8 sites", "Status"),
        ),
        rows=tuple(
            (
                rows[0].target,
                rows[0].backend,
                numbered([row.graph for row in rows]),
                rows[0].precision,
                size(sum(row.bytes for row in rows)),
                smaller_text(rows, report.sizes.fp32_graph_bytes),
                SECONDS(sum(row.build_seconds for row in rows)),
                int8_text(rows[0]),
                status(rows[0]),
            )
            for rows in alike(
                report.engines,
                lambda row: (row.target, row.backend, row.precision, int8_text(row), row.status),
            )
        ),
        caption=OF_ENGINES,
    )


def smaller_text(rows: Sequence[EngineRow], fp32: Mapping[str, int]) -> str:
    """Return how much smaller engines are than their FP32 graphs; empty where that is not known.

    Where graphs share a file of weights, it is known of all of them together alone.
    """
    names, known = {row.graph for row in rows}, fp32.keys() - {WEIGHTS_OF_ALL}
    now = sum(row.bytes for row in rows)
    if now <= 0 or not names <= known or (WEIGHTS_OF_ALL in fp32 and names != known):
        return ""
    before = sum(fp32.values()) if names == known else sum(fp32[name] for name in names)
    return TIMES(before / now)


def alike(rows: Iterable[EngineRow], key: Callable[[EngineRow], object]) -> list[list[EngineRow]]:
    """Return rows that follow each other together if the key and the stem of the graph agree."""
    found = groupby(rows, lambda row: (stem(row.graph), key(row)))
    return [list(group) for _, group in found]


def int8_text(row: EngineRow) -> str:
    """Return how many of the planned INT8 sites of an engine are proved."""
    if not row.int8_sites_planned:
        return "none planned"
    if row.int8_sites_proved is None:
        return f"{row.int8_sites_planned} planned"
    return f"{row.int8_sites_proved} proved of {row.int8_sites_planned}"


def _speeds(report: Report) -> Table:
    levels: dict[str, Level] = {"kept": "good", "removed": "bad"}
    rows = []
    for folder, chosen in (report.kept_if_faster or {}).items():
        for row in (*chosen.rows, *([chosen.model] if chosen.model else [])):
            rows.append(
                (
                    folder,
                    row.graph,
                    joined(list(row.sites), "sites"),
                    MS(row.unquantized_ms),
                    MS(row.quantized_ms),
                    TIMES(row.ratio),
                    f"{row.low:.2f} to {row.high:.2f}"
                    if row.low is not None and row.high is not None
                    else chosen.source,
                    Badge(row.verdict, levels.get(row.verdict, "warn")),
                    row.reason or "",
                )
            )
    return Table(
        title="Where rounding pays",
        header=(
            *("Engine", "Graph", "Sites", "Unquantized", "Quantized", "Times as fast"),
            *("Interval", "Verdict", "Why"),
        ),
        rows=tuple(rows),
        caption=OF_SPEEDS,
        folded=True,
    )


def _proofs(report: Report) -> Table:
    proved = [row for row in report.engines if row.proof is not None]
    return Table(
        title="What engines compute in",
        header=(
            *("Graph", "Target", "Multiplications", "Weight-only sites", "Attention in one kernel"),
            *("Kernels", "Constants"),
        ),
        rows=tuple(
            (
                numbered([row.graph for row in rows]),
                rows[0].target,
                *what_computes(rows[0]),
                *kernels_and_constants([row.proof for row in rows if row.proof is not None]),
            )
            for rows in alike(proved, lambda row: (row.target, what_computes(row)))
        ),
        caption=OF_PROOFS,
    )


def what_computes(row: EngineRow) -> tuple[str, str, str]:
    """Return an engine's multiplications, weight-only sites and attentions as text."""
    proof = row.proof
    if proof is None:
        return "", "", ""
    whole = proof.attentions - len(proof.split_attentions)
    return (
        shares_text(proof),
        f"{proof.weight_sites_proved} proved of {proof.weight_sites_planned}"
        if proof.weight_sites_planned
        else "",
        f"{whole} of {proof.attentions}" if proof.attentions else "",
    )


def kernels_and_constants(proofs: Sequence[EngineProof]) -> tuple[str, str]:
    """Return the kernels and the bytes of constants of some engines, added up."""
    kernels = sum(proof.kernels for proof in proofs)
    conversions = sum(proof.conversions for proof in proofs)
    kinds: dict[str, int] = {}
    for proof in proofs:
        for kind, count in proof.constant_bytes.items():
            kinds[kind] = kinds.get(kind, 0) + count
    constants = ", ".join(f"{size(count)} {kind}" for kind, count in kinds.items())
    return f"{kernels}, {conversions} only convert", constants


def shares_text(proof: EngineProof) -> str:
    """Return an engine's multiplications by what they are computed in, the largest share first."""
    parts = sorted(proof.shares.items(), key=lambda part: -part[1])
    texts = [f"{SHARE(share)} {kind}" for kind, share in parts]
    if proof.uncounted:
        texts.append(f"{len(proof.uncounted)} products of unknown shape")
    return ", ".join(texts)


def _exceptions(report: Report) -> Table:
    """Return sites that run otherwise; those of a target with one reason share a line."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in report.engines:
        for exception in row.exceptions:
            graphs = groups.setdefault((row.target, exception.reason), {})
            graphs.setdefault(row.graph, []).append(exception.site)
    return Table(
        title="Sites an engine does not run as planned",
        header=("Sites", "Target", "Graph", "Why"),
        rows=tuple(
            (joined(list(chain(*graphs.values())), "sites"), target, ", ".join(graphs), why)
            for (target, why), graphs in groups.items()
        ),
        caption="report.json names every one.",
        folded=True,
    )
