"""Choose which numbers of a report stand side by side in tables, and format them."""

from __future__ import annotations

from ..metrics.image import decibels
from .cells import CANDIDATES, DB, MS, SHARE, SSIM, TIMES, Format, megabytes
from .engine_tables import engine_tables
from .generation_tables import generator_tables, rates
from .page import Badge, Table
from .schema import ENGINE, HALF_PRECISION, QDQ, Report, metrics

OF_SITES = (
    "In graph order. Weight and input: what rounding them alone costs; output: what the site gives "
    "with all quantized before it, against FP32."
)


def report_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables that have rows, in reading order."""
    tables = (
        _gates(report),
        _accuracy(report),
        _outputs(report),
        *generator_tables(report),
        _latency(report),
        rates(report),
        _sizes(report),
        *engine_tables(report),
        _images(report),
        _sites(report),
    )
    return tuple(table for table in tables if table.rows)


def _gates(report: Report) -> Table:
    return Table(
        title="Gates",
        header=("Gate", "Result", "Value", "Why"),
        rows=tuple(
            (
                gate.expression,
                Badge("passed", "good") if gate.passed else Badge("failed", "bad"),
                "" if gate.value is None else f"{gate.value:.6g}",
                gate.reason or "",
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
    )
    return Table(
        title="Accuracy",
        header=("Metric", "FP32", *shown.values()),
        rows=tuple(
            (label, reference.get(name, ""), *(text(value[f"{key}.{name}"]) for key in shown))
            for label, name, text in rows
            if shown
        ),
    )


def _outputs(report: Report) -> Table:
    return Table(
        title="Outputs against FP32",
        header=("Output", "Of", "SQNR", "Largest error", "Cosine", "Equal"),
        rows=tuple(
            (
                row.output,
                CANDIDATES[candidate],
                "" if row.max_error is None else DB(decibels(row.sqnr_db)),
                "" if row.max_error is None else f"{row.max_error:.3g}",
                "" if row.cosine is None else f"{row.cosine:.6f}",
                "" if row.equal is None else SHARE(row.equal),
            )
            for candidate in (QDQ, HALF_PRECISION, ENGINE)
            for row in report.outputs.get(candidate, ())
        ),
        caption="End to end over all samples; shares are of integer outputs.",
    )


def _latency(report: Report) -> Table:
    def verdict(text: str) -> str | Badge:
        return text if text == "faster" else Badge(text, "warn")

    return Table(
        title="Latency",
        header=(
            *("Part", "FP32 p50", "Engine p50", "p90", "p99", "min"),
            *("Speed", "Quartiles", "Verdict"),
            *("Image" if report.accuracy or report.generation else "Input", "Threads", "Rounds"),
        ),
        rows=tuple(
            (
                what,
                MS(row.fp32.p50_ms),
                MS(row.engine.p50_ms),
                f"{MS(row.fp32.p90_ms)} / {MS(row.engine.p90_ms)}",
                f"{MS(row.fp32.p99_ms)} / {MS(row.engine.p99_ms)}",
                f"{MS(row.fp32.min_ms)} / {MS(row.engine.min_ms)}",
                TIMES(row.speed.ratio),
                f"{TIMES(row.speed.low)} to {TIMES(row.speed.high)}",
                verdict(row.speed.verdict),
                " \u00d7 ".join(str(n) for n in row.shape),
                str(row.threads),
                str(row.engine.n),
            )
            for what, row in report.latency.items()
        ),
        caption=f"On {report.cpu.model}. Pairs are FP32 / engine; a speed above 1 is faster.",
    )


def _sizes(report: Report) -> Table:
    sizes = report.sizes
    graphs = tuple(
        (f"FP32 graph, {graph}", megabytes(count))
        for graph, count in sizes.fp32_graph_bytes.items()
    )
    running: tuple[tuple[str, str], ...] = ()
    if sizes.fp32_running_bytes is not None:
        running = (
            ("FP32, what runs", megabytes(sizes.fp32_running_bytes)),
            *(
                (f"{CANDIDATES[name]}, what runs", megabytes(count))
                for name, count in sizes.running_bytes.items()
            ),
            ("What runs, smaller than FP32", TIMES(sizes.compression)),
        )
    return Table(
        title="Sizes on disk",
        header=("What", "Size"),
        rows=(
            *graphs,
            *running,
            ("FP32 weights", megabytes(sizes.fp32_weight_bytes)),
            ("Packed weights, which no command loads", megabytes(sizes.packed_weight_bytes)),
            ("Packed, smaller than FP32 weights", TIMES(metrics(report)["packed_compression"])),
        ),
        caption=sizes.note,
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
        header += [f"PSNR {key}", f"SSIM {key}", f"PSNR {key} to FP32"]
    return Table(
        title="Image by image",
        header=tuple(header),
        rows=tuple(zip(report.data.validation, *columns, strict=True)),
        folded=True,
    )


def _sites(report: Report) -> Table:
    rows: list[tuple[str, ...]] = []
    outputs = report.generation[QDQ].sites if QDQ in report.generation else {}
    for site in report.sites:
        noise = (site.weight_sqnr_db, site.activation_sqnr_db)
        output = DB(decibels(outputs[site.name])) if site.name in outputs else ""
        rows.append(
            (
                site.name,
                site.graph,
                site.weight,
                site.activation,
                *("" if db is None else DB(db) for db in noise),
                *((output,) if outputs else ()),
                site.reason or "",
            )
        )
    return Table(
        title="Sites",
        header=(
            *("Site", "Graph", "Weight", "Activation", "Weight SQNR", "Input SQNR"),
            *(("Output SQNR",) if outputs else ()),
            "Why not quantized",
        ),
        rows=tuple(rows),
        caption=OF_SITES if outputs else "",
        folded=True,
    )
