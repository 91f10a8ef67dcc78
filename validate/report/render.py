"""Write a report as files: report.json, report.md, report.html, junit.xml and sample images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ..download import largest_part
from ..formats import DB, MS, SHARE, SSIM, TIMES, size
from ..measure.tokenizer_accuracy import ComparedImage
from ..metrics.image import decibels
from ..remarks import above_qdq, failed_on_copy, gates_of_copy, hidden_parts
from .cells import CANDIDATES
from .charts.latency import latency_charts
from .charts.positions import position_charts
from .files import encode_report
from .gates import metric_of, verdict_text
from .generation_tables import generator_key_figures, same_seed_caption
from .junit import junit
from .notes import noun, report_notes
from .page import Badge, KeyFigure, Page, to_html, to_markdown
from .pictures.compared import CAPTION, image_rows
from .schema import FP32, QDQ, SYNTHETIC, Report, Sizes, metrics
from .site_tables import site_charts
from .spread import INCONCLUSIVE, busy_text, figures, inconclusive_metrics
from .tables import report_tables
from .timing_tables import made_first


def write_report(
    folder: Path, report: Report, pictures: Sequence[ComparedImage], seconds: float = 0.0
) -> None:
    """Write every form of the report into `folder`, which exists.

    `seconds` is what measuring took: in junit.xml alone, so that equal reports are equal files.
    """
    if not folder.is_dir():
        raise WorkspaceError("is not a folder", where=str(folder), do="create it first")
    page = report_page(report, pictures)
    (folder / "report.json").write_bytes(encode_report(report))
    (folder / "report.md").write_text(to_markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(to_html(page), encoding="utf-8")
    (folder / "junit.xml").write_bytes(junit(report, seconds))
    for image in (image for image_row in page.image_rows for image in image_row.images):
        path = folder / image.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.png())


def report_page(report: Report, pictures: Sequence[ComparedImage]) -> Page:
    """Return the page that report.md and report.html show."""
    report = msgspec.structs.replace(report, figures=report.figures or figures(report))
    return Page(
        title=f"{report.model}, {report.name}",
        subtitle=_subtitle(report),
        verdict=_verdict(report),
        warnings=_warnings(report),
        key_figures=_key_figures(report),
        image_rows=image_rows(pictures),
        image_rows_caption=f"{CAPTION} {same_seed_caption(report)}".rstrip() if pictures else "",
        charts=(*site_charts(report), *position_charts(report), *latency_charts(report)),
        tables=report_tables(report),
        notes=(*report_notes(report), *(f"{t[0].upper()}{t[1:]}." for t in above_qdq(report))),
    )


def _subtitle(report: Report) -> str:
    count = len(report.data.validation)
    if report.generation:
        return f"Quantized generator against its FP32 reference, {len(report.data.pictures)} images"
    if report.outputs:
        return f"Quantized graphs against their FP32 originals, {count} held-out samples"
    return f"Quantized image tokenizer against its FP32 reference, {count} validation images"


def _verdict(report: Report) -> Badge:
    count = len(report.gates)
    failed = sum(gate.verdict == "failed" for gate in report.gates)
    undecided = sum(gate.verdict == "inconclusive" for gate in report.gates)
    if not count:
        return Badge("No gates were set", "plain")
    if failed:
        beside = f", {undecided} {INCONCLUSIVE}" if undecided else ""
        return Badge(f"Failed: {verdict_text(report.gates, 'failed')}{beside}", "bad")
    if undecided:
        return Badge(f"Inconclusive: {verdict_text(report.gates, 'inconclusive')}", "warn")
    doubtful = set(inconclusive_metrics(report))
    # A gate that asked for a level has read the interval already.
    plain = [gate for gate in report.gates if gate.n is None]
    chance = sum(metric_of(gate.expression) in doubtful for gate in plain)
    open_text = f", {chance} on an {INCONCLUSIVE} figure" if chance else ""
    busy = sum(bool(busy_text(report, metric_of(gate.expression))) for gate in report.gates)
    open_text += f", {busy} timed on a busy machine" if busy else ""
    passed = "its only gate" if count == 1 else f"all {count} gates"
    on_copy = failed_on_copy(report)
    open_text += ", not on the FP16 copy for TensorRT" if on_copy else ""
    return Badge(f"Passed: {passed}{open_text}", "warn" if on_copy else "good")


def _warnings(report: Report) -> tuple[str, ...]:
    warnings = []
    shared = set(report.data.validation) & set(report.data.calibration)
    if shared:
        warnings.append(
            f"{len(shared)} of {len(report.data.validation)} validation {noun(report)} were also "
            "used for calibration: accuracy may be flattered."
        )
    if SYNTHETIC in report.data.calibration:
        warnings.append(f"Calibrated on synthetic noise, not on {noun(report)}.")
    if report.busy:
        warnings.append(f"Timed on a busy machine: {report.busy}. Speeds may not repeat.")
    if report.headline == QDQ:
        warnings.append("No engine was executed: accuracy is of the Q/DQ graph.")
    found = (*hidden_parts(report), *gates_of_copy(report))
    return (*warnings, *(f"{text[0].upper()}{text[1:]}." for text in found))


def _key_figures(report: Report) -> tuple[KeyFigure, ...]:
    value = metrics(report)
    figures = []
    if report.headline in report.outputs:
        part = value["output_part_sqnr_db"]
        hidden = bool(tuple(hidden_parts(report)))
        figures.append(
            KeyFigure(
                label="SQNR to FP32",
                value=DB(value["output_sqnr_db"]),
                detail="of the worst output" + (f"; its worst part {DB(part)}" if hidden else ""),
            )
        )
    if report.generation:
        figures = generator_key_figures(report)
    if report.headline in report.accuracy:
        accuracy = report.accuracy[report.headline]
        drops = inconclusive_metrics(report)
        figures = [
            KeyFigure(
                label="PSNR to the original",
                value=DB(value["psnr"]),
                detail=f"FP32 {DB(decibels(accuracy.psnr_reference.mean))}, "
                + _drop_text(DB(value["psnr_drop"]), "psnr_drop" in drops),
            ),
            KeyFigure(
                label="SSIM to the original",
                value=SSIM(value["ssim"]),
                detail=f"FP32 {SSIM(accuracy.ssim_reference.mean)}, "
                + _drop_text(SSIM(value["ssim_drop"]), "ssim_drop" in drops),
            ),
        ]
        if value["token_agreement"] is not None:
            figures.append(
                KeyFigure(
                    label="Tokens equal to FP32",
                    value=SHARE(value["token_agreement"]),
                    detail=f"PSNR to FP32 {DB(value['psnr_vs_fp32'])}",
                )
            )
    figures.append(_size_key_figure(report.sizes))
    total = report.latency.get("total")
    if total is not None:
        doubtful = total.speed.verdict == INCONCLUSIVE
        ratio = TIMES(total.speed.ratio)
        times = f"{MS(total.fp32.p50_ms)} to {MS(total.engine.p50_ms)}, {report.cpu.model}"
        figures.append(
            KeyFigure(
                label="Speed against FP32",
                value=INCONCLUSIVE if doubtful else ratio,
                detail=(f"{ratio}, {times}" if doubtful else times) + _busy_detail(report),
                level="warn"
                if doubtful or report.busy or total.speed.verdict == "slower"
                else "plain",
            )
        )
    return (*figures, *_start_key_figure(report))


def _busy_detail(report: Report) -> str:
    return f"; busy: {report.busy}" if report.busy else ""


def _start_key_figure(report: Report) -> tuple[KeyFigure, ...]:
    """Return how long the headline candidate takes from nothing to its first image or sample."""
    own, fp32 = report.starts.get(report.headline or ""), report.starts.get(FP32)
    if own is None or fp32 is None or own.first_median is None or fp32.first_median is None:
        return ()
    parts = [f"FP32 {MS(fp32.load_median + fp32.first_median)}"]
    if own.memory_bytes is not None and fp32.memory_bytes is not None:
        parts.append(f"memory {size(own.memory_bytes)}, FP32's {size(fp32.memory_bytes)}")
    return (
        KeyFigure(
            label=f"Start to first {made_first(report)}",
            value=MS(own.load_median + own.first_median),
            detail="; ".join(parts),
        ),
    )


def _drop_text(drop: str, doubtful: bool) -> str:
    return f"drop {INCONCLUSIVE} ({drop})" if doubtful else f"drop {drop}"


def _size_key_figure(sizes: Sizes) -> KeyFigure:
    """Return the size of what is shipped, and of what runs; an older report has the latter alone.

    One of a still older version has packed weights only.
    """
    if sizes.runs is None or sizes.fp32_running_bytes is None:
        return KeyFigure(
            label="Packed weights",
            value=f"{TIMES(sizes.compression)} smaller",
            detail=f"{size(sizes.fp32_weight_bytes)} to "
            f"{size(sizes.packed_weight_bytes)}, without what runs them",
        )
    runs = f"{size(sizes.running_bytes[sizes.runs])}, {CANDIDATES[sizes.runs]}"
    shipped = sizes.download
    if shipped is None or shipped.form == "engine":
        return KeyFigure(
            label="What runs, on disk",
            value=f"{TIMES(sizes.compression)} smaller",
            detail=f"{size(sizes.fp32_running_bytes)} to {runs}",
        )
    return KeyFigure(
        label=shipped.title,
        value=f"{TIMES(sizes.download_compression)} smaller",
        detail=f"{size(sizes.fp32_running_bytes)} to {size(shipped.bytes)}, "
        f"{largest_part(shipped)}; runs expanded, {TIMES(sizes.compression)} smaller: {runs}",
    )
