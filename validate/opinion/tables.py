"""Show second opinions in a report and in a terminal: what was run again, and whether it agrees."""

from __future__ import annotations

from ..formats import DB, SHARE, error_text
from ..metrics.image import decibels
from ..report.cells import CANDIDATES
from ..report.page import Badge, Table
from ..report.schema import Report
from .facts import SecondOpinion, Way

WAYS: dict[Way, str] = {
    "polygraphy": "Polygraphy's OnnxrtRunner",
    "torch": "PyTorch, the checkpoint's module",
}
OF_GRAPHS = (
    "Our session's outputs and those of another way of running the same graph, fed alike: the "
    "first held-out samples. A limit relative to the RMS is that of the export. The feeds lie in "
    "the folder second-opinion: polygraphy run GRAPH.onnx --onnxrt --load-inputs GRAPH.json."
)
OF_FIGURES = (
    "SQNR of each output of the Q/DQ graph against FP32's, graph by graph, on the same feeds: "
    "measured here, and with both graphs run by Polygraphy, or with PyTorch in FP32's place."
)


def opinion_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables of outputs and of figures; without rows if nobody was asked."""
    return _graphs(report), _figures(report)


def _graphs(report: Report) -> Table:
    left = " ".join(f"Not run: {text}." for text in report.opinions_not_run)
    return Table(
        title="Second opinion",
        header=(
            *("Graph", "Of", "By", "Samples", "Largest difference", "Over the RMS"),
            *("Integers equal", "Limit", "Verdict"),
        ),
        rows=tuple(
            (
                row.graph,
                CANDIDATES.get(row.candidate, "FP32 graph (reference session)"),
                WAYS[row.by],
                str(row.samples),
                _largest(row),
                "" if row.relative_error is None else error_text(row.relative_error),
                "" if row.equal is None else SHARE(row.equal),
                row.limit,
                verdict(row.agrees),
            )
            for row in report.second_opinions
        ),
        caption=f"{OF_GRAPHS} {left}".rstrip(),
    )


def _largest(row: SecondOpinion) -> str:
    if row.max_error is None:
        return "not finite"
    # Of integers alone there is no largest difference to be shown.
    return "" if row.equal is not None and row.relative_error is None else error_text(row.max_error)


def _figures(report: Report) -> Table:
    return Table(
        title="The quantization by second opinion",
        header=("Output", "By", "Samples", "Here", "There", "Limit", "Verdict"),
        rows=tuple(
            (
                f"{row.graph}/{row.output}",
                WAYS[row.by],
                str(row.samples),
                DB(decibels(row.ours_db)),
                DB(decibels(row.theirs_db)),
                DB(row.limit_db),
                verdict(row.agrees),
            )
            for row in report.figure_opinions
        ),
        caption=OF_FIGURES,
    )


def verdict(agrees: bool) -> Badge:
    """Return the cell that says it."""
    return Badge("agrees", "good") if agrees else Badge("differs", "bad")


def opinions_line(report: Report) -> str:
    """Return a line on how many comparisons agree, by whom, and what was not run; "" if none."""
    if not report.second_opinions and not report.opinions_not_run:
        return ""
    parts = []
    for way, name in (("polygraphy", "Polygraphy"), ("torch", "PyTorch")):
        graphs = [row.agrees for row in report.second_opinions if row.by == way]
        figures = [row.agrees for row in report.figure_opinions if row.by == way]
        if graphs:
            text = f"{name} agrees on {sum(graphs)} of {len(graphs)} graphs"
            parts.append(text + (f", {sum(figures)} of {len(figures)} figures" if figures else ""))
    left = [text.partition(":")[0] for text in report.opinions_not_run]
    if left:
        parts.append(f"not run: {', '.join(left)}")
    return f"second opinion: {'; '.join(parts)}"
