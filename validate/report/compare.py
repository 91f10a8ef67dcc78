"""Compare several reports with a baseline: what became better, worse, or changed within noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import BundleError, RecipeError
from ..formats import METRICS
from .page import Badge, Level, Page, Table, to_html, to_markdown
from .schema import Report, metrics

Verdict = Literal["baseline", "better", "worse", "same", "not compared"]

# The same images through the same FP32 graph give the same PSNR up to kernels of another version.
REFERENCE_TOLERANCE_DB = 0.05


@dataclass(frozen=True, slots=True)
class Rule:
    """Define how a metric is judged; ``tolerance`` is absolute, or a share of the baseline."""

    metric: str
    title: str
    better: Literal["higher", "lower"]
    tolerance: float
    relative: bool = False
    machine: bool = False

    def text(self, value: float | None) -> str:
        return METRICS[self.metric](value)

    @property
    def tolerance_text(self) -> str:
        return f"{self.tolerance:.0%}" if self.relative else self.text(self.tolerance)


RULES = (
    Rule("psnr", "PSNR to the original", "higher", 0.05),
    Rule("psnr_min", "PSNR to the original, worst image", "higher", 0.1),
    Rule("psnr_drop", "PSNR drop from FP32", "lower", 0.05),
    Rule("ssim", "SSIM to the original", "higher", 0.001),
    Rule("ssim_drop", "SSIM drop from FP32", "lower", 0.001),
    Rule("psnr_vs_fp32", "PSNR to FP32", "higher", 0.2),
    Rule("ssim_vs_fp32", "SSIM to FP32", "higher", 0.001),
    Rule("token_agreement", "Tokens equal to FP32", "higher", 0.005),
    Rule("latent_sqnr_db", "Latent SQNR", "higher", 0.2),
    Rule("decoder_sqnr_db", "Decoder SQNR", "higher", 0.2),
    Rule("decoder_psnr", "PSNR of the image decoder", "higher", 0.3),
    Rule("output_sqnr_db", "SQNR of the worst output", "higher", 0.2),
    Rule("output_cosine", "Cosine of the worst output", "higher", 0.0001),
    Rule("output_equal", "Equal integers of the worst output", "higher", 0.005),
    Rule("kl", "Divergence of the logits, KL a token", "lower", 0.1, relative=True),
    Rule("top1", "Likeliest token is FP32's", "higher", 0.005),
    Rule("top5", "Of FP32's five likeliest tokens", "higher", 0.005),
    Rule("logits_sqnr_db", "Logits SQNR", "higher", 0.3),
    Rule("cross_entropy_rise", "Cross-entropy above FP32's", "lower", 0.002),
    Rule("condition_sqnr_db", "SQNR of the condition", "higher", 0.3),
    Rule("noise_sqnr_db", "SQNR of the predicted noise", "higher", 0.3),
    Rule("site_sqnr_db", "SQNR of the worst site", "higher", 0.5),
    Rule("frechet_latent", "Fréchet distance, own latents", "lower", 0.2, relative=True),
    Rule("frechet_features", "Fréchet distance, features", "lower", 0.2, relative=True),
    Rule("compression", "Size of what runs, smaller", "higher", 0.01, relative=True),
    Rule("packed_compression", "Packed weights, smaller", "higher", 0.01, relative=True),
    Rule("speedup", "Speed against FP32", "higher", 0.1, relative=True, machine=True),
    Rule("latency_ms", "Engine latency, median", "lower", 0.1, relative=True, machine=True),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one report's value, its change from the baseline, and what that means.

    ``value`` is None if not measured, inf for decibels without error; ``change`` is None where
    there is nothing to compare.
    """

    value: float | None
    change: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one metric over all reports, baseline first."""

    rule: Rule
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold reports by label, baseline first; ``warnings`` say what is not like for like."""

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Return whether any metric is worse than the baseline beyond its tolerance."""
        return any(cell.verdict == "worse" for row in self.rows for cell in row.cells)


def compare(reports: Sequence[tuple[str, Report]], *, allow_different: bool = False) -> Comparison:
    """Compare (label, report) pairs with the first one.

    Speeds of other machines or settings are shown, never judged.

    Raises:
        RecipeError: fewer than two reports.
        BundleError: one is of another model, other validation images or another FP32 reference;
            with `allow_different` that is a warning.
    """
    if len(reports) < 2:
        raise RecipeError(
            f"{len(reports)} report cannot be compared", do="name a baseline and another report"
        )
    (base_label, base), *others = reports
    different = [f"{label}: {why}" for label, r in others for why in _differences(base, r)]
    if different and not allow_different:
        raise BundleError(
            f"not comparable with {base_label}: {'; '.join(different)}",
            do="validate the same model on the same images, or allow different reports",
        )
    base_values = metrics(base)
    rows = []
    for rule in RULES:
        cells = [Cell(base_values[rule.metric], None, "baseline")]
        for _, report in others:
            judged = not rule.machine or _same_machine(base, report)
            value = metrics(report)[rule.metric]
            cells.append(_judge(rule, base_values[rule.metric], value, judged))
        if any(cell.value is not None for cell in cells):
            rows.append(Row(rule, tuple(cells)))
    warnings = [*different, *(w for label, r in others for w in _cautions(base, label, r))]
    warnings += [
        f"{label}: {row.rule.title} was not measured, the baseline has it"
        for row in rows
        for (label, _), cell in zip(others, row.cells[1:], strict=True)
        if cell.value is None
    ]
    return Comparison(tuple(label for label, _ in reports), tuple(rows), tuple(warnings))


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, readable in a terminal too."""
    return to_markdown(_page(comparison))


def comparison_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML file without external resources."""
    return to_html(_page(comparison))


def _differences(base: Report, report: Report) -> list[str]:
    """Return why numbers of the two reports must not stand in one table."""
    messages = []
    if report.model != base.model:
        messages.append(f"model {report.model}, not {base.model}")
    if report.data.validation != base.data.validation:
        ours, theirs = set(report.data.validation), set(base.data.validation)
        messages.append(
            f"other validation images ({len(ours - theirs)} new, {len(theirs - ours)} missing)"
            if ours != theirs
            else "validation images in another order"
        )
    elif report.data.pictures != base.data.pictures:
        messages.append("images of other classes or seeds")
    elif report.data.sampling != base.data.sampling:
        messages.append("other sampling of the images")
    elif report.headline in report.accuracy and base.headline in base.accuracy:
        pairs = zip(
            report.data.validation,
            base.accuracy[base.headline].psnr_reference.each,
            report.accuracy[report.headline].psnr_reference.each,
            strict=True,
        )
        moved = [name for name, a, b in pairs if not _close(a, b)]
        if moved:
            messages.append(
                f"FP32 itself reconstructs {moved[0]} differently: the images behind the names or "
                "the checkpoint are not the same"
            )
    return messages


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= REFERENCE_TOLERANCE_DB


def _same_machine(base: Report, report: Report) -> bool:
    def setting(r: Report) -> object:
        total = r.latency.get("total")
        return r.cpu, total and (total.shape, total.batch, total.threads)

    return setting(base) == setting(report)


def _cautions(base: Report, label: str, report: Report) -> list[str]:
    messages = []
    if report.headline != base.headline:
        messages.append(
            f"{label}: accuracy is of {report.headline}, the baseline's of {base.headline}"
        )
    if "total" in base.latency and "total" in report.latency and not _same_machine(base, report):
        messages.append(f"{label}: measured on another CPU or setting, speeds are not judged")
    return messages


def _judge(rule: Rule, base: float | None, value: float | None, judged: bool) -> Cell:
    if base is None or value is None:
        return Cell(value, None, "not compared")
    # inf - inf is not a number; no error in both is no change
    change = 0.0 if value == base else value - base
    if not judged:
        return Cell(value, change, "not compared")
    allowed = rule.tolerance * abs(base) if rule.relative else rule.tolerance
    if change == 0 or abs(change) <= allowed < math.inf:
        return Cell(value, change, "same")
    improved = change > 0 if rule.better == "higher" else change < 0
    return Cell(value, change, "better" if improved else "worse")


_LEVELS: dict[Verdict, Level] = {"better": "good", "worse": "bad"}


def _page(comparison: Comparison) -> Page:
    worse = [row.rule.title for row in comparison.rows if "worse" in {c.verdict for c in row.cells}]
    return Page(
        title="Comparison of reports",
        subtitle=f"Baseline: {comparison.labels[0]}",
        verdict=Badge(f"Regressed: {', '.join(worse)}", "bad")
        if comparison.regressed
        else Badge("No regression", "good"),
        warnings=comparison.warnings,
        tables=(
            Table(
                title="Metrics",
                header=("Metric", "Better", "Tolerance", *comparison.labels),
                rows=tuple(
                    (
                        row.rule.title,
                        row.rule.better,
                        row.rule.tolerance_text,
                        *(_cell_text(row.rule, cell) for cell in row.cells),
                    )
                    for row in comparison.rows
                ),
                caption="A change within the tolerance is noise and counts as the same.",
            ),
        ),
    )


def _cell_text(rule: Rule, cell: Cell) -> str | Badge:
    text = rule.text(cell.value)
    if cell.change is None or cell.verdict == "same":
        return text if cell.verdict == "baseline" else f"{text}, {cell.verdict}"
    sign = "\u2212" if cell.change < 0 else "+"
    size = "\u221e" if math.isinf(cell.change) else rule.text(abs(cell.change))
    return Badge(f"{text} ({sign}{size}, {cell.verdict})", _LEVELS.get(cell.verdict, "plain"))
