"""Summarize a comparison with a baseline as a short comment of a pull request, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..report.page import Badge, Table, table_markdown
from ..report.schema import Report
from ..report.spread import INCONCLUSIVE
from .compare import Comparison, Row
from .page import interval_text, needs_text, signed

LIMIT = 65_536  # characters of a comment on GitHub
LONGEST_NAME, LONGEST_LINE, MOST_LINES, MOST_ROWS = 200, 300, 10, 40
BASELINE, NEW = "Baseline", "New"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-!|~])")


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Hold a baseline and a new report with their labels, and what comparing them found.

    Without a comparison, ``problem`` says why there is none.
    """

    labels: tuple[str, str]
    base: Report
    new: Report
    found: Comparison | None = None
    problem: str = ""


def marker(report: Report) -> str:
    """Return the hidden line by which a later run finds its comment of a model's quantization."""
    words = re.sub(r"[^A-Za-z0-9._]+", "-", f"{report.model}-{report.name}")
    return f"<!-- arvg-trt {words[:LONGEST_NAME].strip('-')} -->"


def summary_markdown(pair: ComparedPair) -> str:
    """Return the comment: the marker, the verdict, what changed, and the rest folded."""
    rows = pair.found.rows if pair.found else ()
    changed = [r for r in rows if r.decides and r.cells[1].verdict in ("better", "worse")]
    open_rows = [r for r in rows if r.decides and r.cells[1].verdict == INCONCLUSIVE]
    informs = [r for r in rows if not r.decides]
    others = [r for r in rows if r not in (*changed, *open_rows, *informs)]
    shown = (*changed, *open_rows)
    head = [marker(pair.new), f"### {verdict_line(pair, changed, open_rows)}", "", what_line(pair)]
    head += [f"- {text}" for text in shortened(failed_gates(pair.new))]
    if pair.found is None:
        head += ["", inert(pair.problem)]
    if shown:
        head += ["", rows_table(shown)]
    if pair.found and pair.found.warnings:
        head += ["", *(f"> {text}  " for text in shortened(map(inert, pair.found.warnings)))]
    parts = ["\n".join(head)]
    if others:
        parts.append(folded(others_title(others, bool(shown)), others_table(others)))
    if informs:
        parts.append(folded("What informs, and fails nothing", rows_table(informs)))
    parts.append(folded("What was compared", compared_table(pair)))
    return fitting(parts)


def verdict_line(pair: ComparedPair, changed: Sequence[Row], open_rows: Sequence[Row]) -> str:
    """Return the verdict in one line; it is worse exactly where `compare` finds a regression."""
    if pair.found is None:
        text = "Not comparable with the baseline"
    elif worse := [row for row in changed if row.cells[1].verdict == "worse"]:
        rest = f", {len(changed) - len(worse)} better" if len(worse) < len(changed) else ""
        text = f"Worse than the baseline in {titles(worse)}{rest}"
    elif pair.found.undecided:
        text = f"Inconclusive: {titles(pair.found.undecided)} had to be decided, and is not"
    elif open_rows:
        rest = f", better in {titles(changed)}" if changed else ""
        text = f"Inconclusive: the change may be chance in {titles(open_rows)}{rest}"
    elif changed:
        text = f"Better than the baseline in {titles(changed)}"
    elif all(row.cells[1].verdict == "not compared" for row in pair.found.rows if row.decides):
        text = "Inconclusive: no metric could be compared with the baseline"
    else:
        text = "Same as the baseline"
    for verdict in ("failed", INCONCLUSIVE):  # the gates and their figures are listed below
        found = [gate.expression for gate in pair.new.gates if gate.verdict == verdict]
        named = f"gate {code(found[0])}" if len(found) == 1 else f"{len(found)} gates"
        text += f"; {named} {verdict}" if found else ""
    return text


def titles(rows: Sequence[Row]) -> str:
    """Return the name of one metric, or how many they are."""
    return rows[0].rule.title if len(rows) == 1 else f"{len(rows)} metrics"


def what_line(pair: ComparedPair) -> str:
    """Return which model, quantization and version are new, and whether the gates passed."""
    report = pair.new
    version = report.versions.get("arvg-trt")
    facts = [code(report.model), f"quantization {code(report.name)}"]
    facts += [f"arvg-trt {code(version)}"] if version else []
    if report.passed is False:
        return f"{', '.join(facts)}; {report.verdict}:"
    count = len(report.gates)
    passed = "its only gate passed" if count == 1 else f"all {count} gates passed"
    return f"{', '.join(facts)}; {passed if count else 'no gates'}."


def failed_gates(report: Report) -> list[str]:
    return [
        code(gate.expression) + (f": {inert(gate.reason)}" if gate.reason else "")
        for gate in report.gates
        if not gate.passed
    ]


def rows_table(rows: Sequence[Row]) -> str:
    """Return a table of metrics that changed, or may have, with the interval of the change."""
    return table_markdown(
        Table(
            title="",
            header=("Metric", BASELINE, NEW, "Change", "Interval of 95 %", "Verdict"),
            rows=tuple(
                (*cells(row), interval_text(row.rule, row.cells[1]), verdict_cell(row))
                for row in rows
            ),
        )
    )


def others_table(rows: Sequence[Row]) -> str:
    """Return a table of metrics that are the same, or that could not be compared."""
    header = ("Metric", BASELINE, NEW, "Change", "Tolerance", "Verdict")
    body = tuple((*cells(row), row.rule.tolerance_text, str(row.cells[1].verdict)) for row in rows)
    return table_markdown(Table(title="", header=header, rows=body))


def cells(row: Row) -> tuple[str, str, str, str]:
    """Return a metric's title, both values and the change; nothing where there is none."""
    base, new = row.cells[:2]
    change = new.change
    text = ""
    if change is not None:
        text = signed(row.rule, change) if change else row.rule.change_text(0.0)
    return row.rule.title, row.rule.text(base.value), row.rule.text(new.value), text


def verdict_cell(row: Row) -> Badge:
    """Return the verdict, with what would decide an inconclusive one."""
    cell = row.cells[1]
    needs = needs_text(cell, row.rule)
    text = f"{cell.verdict}: {needs}" if needs else cell.verdict
    return Badge(text, "bad" if cell.verdict == "worse" and row.decides else "plain")


def others_title(rows: Sequence[Row], beside: bool) -> str:
    """Return how many metrics are neither better nor worse; others may stand `beside` them."""
    same = sum(row.cells[1].verdict == "same" for row in rows)
    counts = {"the same within the tolerance": same, "not compared": len(rows) - same}
    text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"Other metrics: {text}" if beside else f"All metrics: {text}"


def compared_table(pair: ComparedPair) -> str:
    """Return a table of both reports: file, model, what was measured, processor, versions."""
    both = (pair.base, pair.new)
    facts: dict[str, list[str]] = {
        "Report": list(pair.labels),
        "Model": [report.model for report in both],
        "Quantization": [report.name for report in both],
        "Measured": [report.headline or "nothing" for report in both],
        "Validation samples": [str(len(r.data.validation or r.data.pictures)) for r in both],
        "Processor": [report.cpu.model for report in both],
    }
    rows = [(name, *map(code, values)) for name, values in facts.items()]
    for name in dict.fromkeys((*pair.base.versions, *pair.new.versions)):
        rows.append((code(name), *(code(report.versions.get(name, "")) for report in both)))
    return table_markdown(Table(title="", header=("", BASELINE, NEW), rows=tuple(rows[:MOST_ROWS])))


def folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def shortened(lines: Iterable[str]) -> list[str]:
    """Return at most MOST_LINES of them, and how many are left out."""
    every = list(lines)
    rest = len(every) - MOST_LINES
    return every if rest <= 0 else [*every[:MOST_LINES], f"and {rest} more"]


def one_line(text: str, longest: int) -> str:
    """Return a text in one line of printable characters, cut where it is longer than it may be."""
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return plain if len(plain) <= longest else f"{plain[:longest]}\u2026"


def code(text: str) -> str:
    """Return a name as code, in which nothing is a link, a mention or markup."""
    plain = one_line(text, LONGEST_NAME)
    if not plain:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    edge = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{edge}{plain}{edge}{fence}"


def inert(text: str) -> str:
    """Return a sentence that reads as it is: no markup, no HTML, no link, no mention."""
    plain = one_line(text, LONGEST_LINE)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = _MARKDOWN.sub(r"\\\1", plain)
    # The platforms look for mentions, issues and addresses in the text that markup leaves.
    references = r"(?:[@#!~$%]|&amp;)(?=\w)|:(?=//)|\bwww(?=\.)|\bGH(?=\\-)"
    return re.sub(references, r"\g<0>&#8203;", plain)


def fitting(parts: Sequence[str]) -> str:
    """Return as many parts as fit into a comment; the first one does, whatever names it holds."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part) + 2 for part in kept) >= LIMIT:
        kept.pop()
    return "\n\n".join(kept) + "\n"
