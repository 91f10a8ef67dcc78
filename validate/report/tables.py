"""Choose which numbers of a report stand side by side in tables, and format them."""

from __future__ import annotations

from ..download import PARTS
from ..formats import COSINE, DB, SHARE, SSIM, TIMES, Format, error_text, metric_text, size
from ..metrics.image import decibels
from ..metrics.outputs import OutputAccuracy
from ..opinion.tables import opinion_tables
from ..quality.tables import QUALITY_ROWS, codebook_table, quality_caption, quality_reference
from ..remarks import channels_text, part_of
from .cells import CANDIDATES, SHORT
from .engine_tables import engine_tables
from .gates import GateResult, Verdict, chance_text, metric_of
from .generation_tables import cache_table, generator_tables, memory_table
from .interval_tables import TITLE, column_title, headline_interval, interval_table
from .page import Badge, Level, Table
from .schema import FP32, Report, Sizes, metrics
from .site_tables import site_table
from .spread import inconclusive_metrics
from .timing_tables import timing_tables

OF_OUTPUTS = "End to end over all samples; shares are of integer outputs."
OF_PARTS = (
    "Parts are channels whose RMS is a tenth or less of that of the others; the SQNR of the whole "
    "is that of the largest."
)


def report_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables that have rows, in reading order."""
    tables = (
        _gates(report),
        _accuracy(report),
        codebook_table(report),
        _outputs(report),
        *generator_tables(report),
        *timing_tables(report),
        memory_table(report),
        _sizes(report),
        *engine_tables(report),
        *opinion_tables(report),
        _images(report),
        interval_table(report),
        site_table(report),
        cache_table(report),
    )
    return tuple(table for table in tables if table.rows)


_LEVELS: dict[Verdict, Level] = {"passed": "good", "failed": "bad", "inconclusive": "warn"}


def _gates(report: Report) -> Table:
    doubtful = inconclusive_metrics(report)

    def why(gate: GateResult) -> str:
        open_figure = gate.n is None and metric_of(gate.expression) in doubtful
        return gate.reason or (chance_text(gate.expression) if open_figure else "")

    return Table(
        title="Gates",
        header=("Gate", "Result", "Value", TITLE, "Why"),
        rows=tuple(
            (
                gate.expression,
                Badge(gate.verdict, _LEVELS[gate.verdict]),
                "" if gate.value is None else metric_text(metric_of(gate.expression), gate.value),
                headline_interval(report, metric_of(gate.expression)),
                why(gate),
            )
            for gate in report.gates
        ),
    )


def _accuracy(report: Report) -> Table:
    shown = {key: title for key, title in CANDIDATES.items() if key in report.accuracy}
    value = metrics(report)
    reference: dict[str, str] = {}
    if report.headline in report.accuracy:
        fp32 = report.accuracy[report.headline]
        reference = {
            "psnr": DB(decibels(fp32.psnr_reference.mean)),
            "psnr_min": DB(decibels(fp32.psnr_reference.min)),
            "ssim": SSIM(fp32.ssim_reference.mean),
            "ssim_min": SSIM(fp32.ssim_reference.min),
        }
        if fp32.codebook_use_reference is not None:
            reference["codebook_use"] = SHARE(fp32.codebook_use_reference)
        reference |= quality_reference(report)
    rows: tuple[tuple[str, str, Format], ...] = (
        ("PSNR to the original, mean", "psnr", DB),
        ("PSNR to the original, worst image", "psnr_min", DB),
        ("PSNR drop from FP32", "psnr_drop", DB),
        ("SSIM to the original, mean", "ssim", SSIM),
        ("SSIM to the original, worst image", "ssim_min", SSIM),
        ("SSIM drop from FP32", "ssim_drop", SSIM),
        ("PSNR to FP32, mean", "psnr_vs_fp32", DB),
        ("PSNR to FP32, worst image", "psnr_vs_fp32_min", DB),
        ("SSIM to FP32, mean", "ssim_vs_fp32", SSIM),
        ("Tokens equal to FP32", "token_agreement", SHARE),
        ("Latent SQNR", "latent_sqnr_db", DB),
        ("Decoder SQNR, same tokens", "decoder_sqnr_db", DB),
        ("Codebook entries used", "codebook_use", SHARE),
        *QUALITY_ROWS,
        ("SQNR of the worst site", "site_sqnr_db", DB),
    )
    return Table(
        title="Accuracy",
        header=("Metric", "FP32", *shown.values(), column_title(report)),
        rows=tuple(
            (
                label,
                reference.get(name, ""),
                *(text(value[f"{key}.{name}"]) for key in shown),
                headline_interval(report, name),
            )
            for label, name, text in rows
            if any(value[f"{key}.{name}"] is not None for key in shown)
        ),
        caption=quality_caption(report),
    )


def _outputs(report: Report) -> Table:
    rows = [
        (candidate, row) for candidate in CANDIDATES for row in report.outputs.get(candidate, ())
    ]
    divided = any(part_of(row) for _, row in rows)
    return Table(
        title="Outputs against FP32",
        header=(
            *("Output", "Of", "SQNR", "Largest error", "Cosine", "Equal"),
            *(("Worst part", "Its SQNR") if divided else ()),
        ),
        rows=tuple(
            (
                row.output,
                CANDIDATES[candidate],
                "" if row.max_error is None else DB(decibels(row.sqnr_db)),
                "" if row.max_error is None else error_text(row.max_error),
                "" if row.cosine is None else COSINE(row.cosine),
                "" if row.equal is None else SHARE(row.equal),
                *(part_cells(row) if divided else ()),
            )
            for candidate, row in rows
        ),
        caption=f"{OF_OUTPUTS} {OF_PARTS}" if divided else OF_OUTPUTS,
    )


def part_cells(row: OutputAccuracy) -> tuple[str, str]:
    """Return the worst part of an output with its scale, and its SQNR."""
    part = part_of(row)
    if part is None:
        return "", ""
    scale = f"RMS {part.rms:.3g} of {part.largest_rms:.3g}"
    varies = ", by what they vary" if part.about_mean else ""
    return f"{channels_text(part)}, {scale}{varies}", DB(decibels(part.sqnr_db))


def _sizes(report: Report) -> Table:
    sizes = report.sizes
    graphs = tuple(
        (f"FP32 graph, {graph}", size(count)) for graph, count in sizes.fp32_graph_bytes.items()
    )
    running: tuple[tuple[str, str], ...] = ()
    if sizes.fp32_running_bytes is not None:
        running = (
            ("FP32, what runs", size(sizes.fp32_running_bytes)),
            *(
                (f"{CANDIDATES[name]}, what runs", size(count))
                for name, count in sizes.running_bytes.items()
            ),
            ("What runs, smaller than FP32", TIMES(sizes.compression)),
        )
    packed = TIMES(metrics(report)["packed_compression"])
    return Table(
        title="Sizes",
        header=("What", "Size"),
        rows=(
            *graphs,
            *running,
            *_download_rows(sizes),
            *(() if report.starts else _memory_rows(sizes)),
            ("FP32 weights of quantized graphs", size(sizes.fp32_weight_bytes)),
            ("Their weights in weights.safetensors", size(sizes.packed_weight_bytes)),
            ("Quantized weights alone, smaller than FP32 weights", packed),
        ),
        caption=sizes.note,
    )


def _download_rows(sizes: Sizes) -> tuple[tuple[str, str], ...]:
    """Return what a device downloads, part by part, and what that takes where it is opened."""
    found = sizes.download
    if found is None:
        return ()
    of = CANDIDATES[found.candidate]
    return (
        (f"{found.title}, {of}", size(found.bytes)),
        *((f"of it {PARTS.get(part, part)}", size(n)) for part, n in found.parts.items()),
        (f"{of}, its whole folder expanded", size(found.expanded_bytes)),
        ("Download, smaller than FP32, what runs", TIMES(sizes.download_compression)),
    )


def _memory_rows(sizes: Sizes) -> tuple[tuple[str, str], ...]:
    titles = {FP32: "FP32", **CANDIDATES}
    return tuple(
        (f"{titles[name]}, in memory at its peak", size(count))
        for name, count in sizes.memory_bytes.items()
    )


def _images(report: Report) -> Table:
    shown = {key: report.accuracy[key] for key in CANDIDATES if key in report.accuracy}
    if report.headline not in report.accuracy:
        return Table(title="Image by image", header=(), rows=())
    fp32 = report.accuracy[report.headline].psnr_reference.each
    columns = [tuple(DB(decibels(v)) for v in fp32)]
    header = ["Image", "PSNR FP32"]
    for key, accuracy in shown.items():
        columns += [
            tuple(DB(decibels(v)) for v in accuracy.psnr.each),
            tuple(SSIM(v) for v in accuracy.ssim.each),
            tuple(DB(decibels(v)) for v in accuracy.psnr_vs_fp32.each),
        ]
        name = SHORT[key]
        header += [f"PSNR {name}", f"SSIM {name}", f"PSNR {name} to FP32"]
    return Table(
        title="Image by image",
        header=tuple(header),
        rows=tuple(zip(report.data.validation, *columns, strict=True)),
        folded=True,
    )
