"""Tables of a report on its engines: what they are, compute in, and do not run as planned."""

from __future__ import annotations

from ...engines.facts import EngineProof, EngineRow
from .cells import CANDIDATES, megabytes
from .page import Badge, Table
from .schema import Report

EXECUTED = "executed"
OF_PROOFS = (
    "Read off the builder's layer list, not run. Shares are of the multiplications of all products "
    "at the shapes that the engine is built for; INT4 weights are those multiplied in half "
    "precision. Kernels that only convert change types or move data."
)
OF_SECOND_OPINIONS = (
    "The outputs of our session and of Polygraphy's runner for ONNX Runtime, fed alike. The feeds "
    "lie in the folder second-opinion: polygraphy run GRAPH.onnx --onnxrt --load-inputs GRAPH.json."
)


def engine_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables on engines, and on the sessions that figures were measured in."""
    return _engines(report), _proofs(report), _exceptions(report), _second_opinions(report)


def _engines(report: Report) -> Table:
    def status(row: EngineRow) -> Badge:
        return Badge(row.status, "good" if row.status == EXECUTED else "warn")

    return Table(
        title="Engines",
        header=("Target", "Backend", "Graph", "Precision", "Size", "Build", "INT8 sites", "Status"),
        rows=tuple(
            (
                row.target,
                row.backend,
                row.graph,
                row.precision,
                megabytes(row.bytes),
                f"{row.build_seconds:.1f} s",
                f"{row.int8_sites_planned} planned"
                if row.int8_sites_proved is None
                else f"{row.int8_sites_proved} proved of {row.int8_sites_planned}",
                status(row),
            )
            for row in report.engines
        ),
        caption="Proved: the builder's layer list shows an INT8 kernel for the site.",
    )


def _proofs(report: Report) -> Table:
    proofs = [(row, row.proof) for row in report.engines if row.proof is not None]
    return Table(
        title="What engines compute in",
        header=(
            *("Graph", "Target", "Multiplications", "Weight-only sites", "Attention in one kernel"),
            *("Kernels", "Constants"),
        ),
        rows=tuple(
            (
                row.graph,
                row.target,
                shares_text(proof),
                f"{proof.weight_sites_proved} proved of {proof.weight_sites_planned}"
                if proof.weight_sites_planned
                else "",
                f"{proof.attentions - len(proof.split_attentions)} of {proof.attentions}"
                if proof.attentions
                else "",
                f"{proof.kernels}, {proof.conversions} only convert",
                ", ".join(f"{megabytes(n)} {kind}" for kind, n in proof.constant_bytes.items()),
            )
            for row, proof in proofs
        ),
        caption=OF_PROOFS,
    )


def shares_text(proof: EngineProof) -> str:
    """Return an engine's multiplications by what they are computed in, the largest share first."""
    parts = sorted(proof.shares.items(), key=lambda part: -part[1])
    texts = [f"{share:.1%} {kind}" for kind, share in parts]
    if proof.uncounted:
        texts.append(f"{len(proof.uncounted)} products of unknown shape")
    return ", ".join(texts)


def _exceptions(report: Report) -> Table:
    return Table(
        title="Sites an engine does not run as planned",
        header=("Site", "Target", "Graph", "Why"),
        rows=tuple(
            (exception.site, row.target, row.graph, exception.reason)
            for row in report.engines
            for exception in row.exceptions
        ),
        folded=True,
    )


def _second_opinions(report: Report) -> Table:
    return Table(
        title="Second opinion",
        header=("Graph", "Of", "Outputs", "Largest difference", "Verdict"),
        rows=tuple(
            (
                row.graph,
                CANDIDATES.get(row.candidate, "FP32 graph (reference session)"),
                str(row.outputs),
                f"{row.max_error:.3g}",
                Badge("agrees", "good") if row.agrees else Badge("differs", "bad"),
            )
            for row in report.second_opinions
        ),
        caption=OF_SECOND_OPINIONS,
    )
