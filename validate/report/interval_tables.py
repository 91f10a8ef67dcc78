"""Show the intervals of figures: beside the headline's, and all of them in a table of their own."""

from __future__ import annotations

from ..formats import metric_text
from ..intervals.bootstrap import LEVEL
from ..intervals.figure import Figure, plain
from .cells import CANDIDATES, SHORT
from .page import Table
from .schema import Report, metrics
from .spread import figure, figures

TITLE = f"Interval of {100 * LEVEL:g} %"
METHODS = {
    "bca": "bootstrap, BCa",
    "percentile": "bootstrap, percentiles",
    "t": "Student's t, few samples",
    "exact": "exact, of a share",
    "order": "between two of the samples",
}


def column_title(report: Report) -> str:
    """Return the head of the column with the headline's intervals."""
    return f"{TITLE}, {SHORT[report.headline]}" if report.headline else TITLE


def interval_text(name: str, found: Figure | None) -> str:
    """Return both ends in the metric's unit; empty where there is no interval."""
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{metric_text(name, found.low)} to {metric_text(name, found.high)}"


def headline_interval(report: Report, name: str) -> str:
    """Return the interval of a metric of the headline candidate, as tables have it.

    An engine has no sites to look into: their interval is the Q/DQ graph's, beside another column.
    """
    known = metrics(report)
    own = f"{report.headline}.{name}"
    if own in known and known[own] is None:
        return ""
    return interval_text(name, figure(report, name))


def interval_table(report: Report) -> Table:
    """Return every figure with its samples, and how its interval was had or why there is none."""
    found = report.figures or figures(report)
    return Table(
        title="Intervals of all figures",
        header=("Figure", "Of", "Value", "Samples", TITLE, "How"),
        rows=tuple(
            (
                plain(name),
                of_text(name),
                metric_text(name, float("inf") if each.value is None else each.value),
                str(each.n) if each.n else "",
                interval_text(name, each),
                METHODS[each.method] if each.method else each.why or "",
            )
            for name, each in found.items()
        ),
        caption="Of samples like these: an interval says nothing of other data.",
        folded=True,
        filters=("Of",),
        nouns="figures",
    )


def of_text(name: str) -> str:
    """Return the candidate or part that a figure is of."""
    before = name.rpartition(".")[0]
    return CANDIDATES.get(before, before or "total")
