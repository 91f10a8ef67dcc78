"""Compare found bits with fixed bits, on a tokenizer and on a generator.

python -m arvg_trt.benchmarks.search --data ../shared/data

The tokenizer's fixed bits are encoder 6 and decoder 4, and its plan may take no more bytes on disk
than the smaller of the paper's two (per tensor, logarithmic and uniform). The generator's has at
most 5 bits a weight on average.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from ...pipeline.calibrate import calibrate_stage
from ...pipeline.export import export_any
from ...pipeline.quantize import quantize_stage
from ...pipeline.search import search_stage
from ...recipe.base import with_changes
from ...recipe.calibrate import CalibrateOptions
from ...recipe.commands import SearchOptions
from ...recipe.quantize import FLOAT_BITS, QuantizeMethod, QuantizeOptions
from ...runtime.images import Uint8Image
from ...runtime.tokenizer import ImageTokenizer
from ...workspace.stage import StageResult
from ...workspace.workspace import Workspace
from ..ablation.ablation import BATCH, HELD_OUT_SEED
from ..ablation.measure import graph_model
from ..ablation.measure import measure as distance
from ..common import (
    CALIBRATION_PHOTOGRAPHS,
    RESULTS,
    QuietReporter,
    data_folder,
    environment,
    evaluation_sets,
    generated_rows,
    write_results,
)
from ..tokenizer_bits.tokenizer_bits import Measurement, crops, measure
from .report import (
    FOUND,
    GENERATOR,
    TOKENIZER,
    GeneratorRow,
    SearchRow,
    TokenizerRow,
    report,
)

ENCODER_BITS, DECODER_BITS = 6, 4
PAPER: tuple[QuantizeMethod, ...] = ("log_quantization", "per_tensor")
AVG_BITS = 5


def tokenizer_rows(
    root: Path, source: str, images: Mapping[str, Sequence[Uint8Image]], samples: int, size: int
) -> tuple[list[TokenizerRow], SearchRow]:
    """Measure the paper's two settings, and the plan found for the bytes of the smaller one."""
    reporter = QuietReporter()
    weights_only = QuantizeOptions(activation_bits=FLOAT_BITS)
    with Workspace(root) as workspace:
        export_any(workspace, TOKENIZER, None, "skimage", (), reporter)
        calibrate_stage(
            workspace, CalibrateOptions(images=source, samples=samples, size=size), reporter
        )
        made = {}
        for method in PAPER:
            options = QuantizeOptions(
                quantize_method=method,
                encoder_bits=ENCODER_BITS,
                decoder_bits=DECODER_BITS,
                activation_bits=FLOAT_BITS,
            )
            name = f"{method}-{ENCODER_BITS}-{DECODER_BITS}"
            made[name] = quantize_stage(workspace, name, options, reporter)
        most = min(done.manifest.results["packed_bytes"] for done in made.values())
        search = SearchOptions(budgets=(f"size<={most}B",), samples=samples)
        found = search_stage(workspace, FOUND, weights_only, search, reporter)
        by_plan = with_changes(weights_only, plan=str(found.folder / "plan.json"))
        made[FOUND] = quantize_stage(workspace, FOUND, by_plan, reporter)
        fp32 = measure(ImageTokenizer.open(workspace.folder("export")), images)
        measured = {k: measure(ImageTokenizer.open(v.folder), images) for k, v in made.items()}
    rows = [
        tokenizer_row(name, made[name], values, measured[FOUND], fp32)
        for name, values in measured.items()
    ]
    fp32_bytes = made[FOUND].manifest.results["fp32_bytes"]
    rows.append(TokenizerRow("FP32", fp32_bytes, fp32.mean, 1.0, *paired(fp32, measured[FOUND])))
    return rows, SearchRow.of(TOKENIZER, found)


def tokenizer_row(
    name: str, done: StageResult, found: Measurement, best: Measurement, fp32: Measurement
) -> TokenizerRow:
    return TokenizerRow(
        name,
        done.manifest.results["packed_bytes"],
        found.mean,
        found.tokens_equal(fp32),
        *paired(found, best),
    )


def paired(one: Measurement, other: Measurement) -> tuple[float, float]:
    """Return how much lower the PSNR of one is, and two standard errors."""
    less = np.subtract(other.values, one.values)
    return float(less.mean()), 2 * float(np.std(less)) / len(less) ** 0.5


def generator_rows(
    root: Path, calibration: int, held_out: int, samples: int
) -> tuple[list[GeneratorRow], list[SearchRow]]:
    """Measure one width everywhere and the plan found, with float inputs and with 8 bits."""
    reporter = QuietReporter()
    rows, searches = [], []
    with Workspace(root) as workspace, tempfile.TemporaryDirectory() as scratch:
        export_any(workspace, GENERATOR, None, "skimage", (), reporter)
        calibrate_stage(workspace, CalibrateOptions(samples=calibration, batch_size=8), reporter)
        export = workspace.folder("export")
        rows_left_out = generated_rows(export, Path(scratch) / "ws", held_out, HELD_OUT_SEED)
        reference = graph_model(export)
        for bits in (FLOAT_BITS, 8):
            even = QuantizeOptions(weight_bits=AVG_BITS, activation_bits=bits)
            # The formats are the same, so any gain comes from the widths.
            search = SearchOptions(
                budgets=(f"avg_bits<={AVG_BITS}",), samples=samples, grids=("uniform",)
            )
            found = search_stage(workspace, f"{FOUND}-{bits}", even, search, reporter)
            searches.append(SearchRow.of(f"{GENERATOR}, activations {bits}", found))
            by_plan = with_changes(even, plan=str(found.folder / "plan.json"))
            made = {
                f"{AVG_BITS} everywhere": quantize_stage(workspace, f"even-{bits}", even, reporter),
                FOUND: quantize_stage(workspace, f"{FOUND}-{bits}", by_plan, reporter),
            }
            for name, done in made.items():
                to = distance(reference, graph_model(done.folder), rows_left_out, BATCH)
                average = found.manifest.results["avg_bits"] if name == FOUND else AVG_BITS
                size = done.manifest.results["packed_bytes"]
                rows.append(GeneratorRow(name, bits, average, size, to.kl, to.top1))
                click.echo(rows[-1], err=True)
    return rows, searches


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder with kodak, art, calib256.")
@click.option("--workspaces", type=click.Path(path_type=Path), help="Kept; else temporary ones.")
@click.option("--samples", default=8, show_default=True, help="Samples of each search.")
@click.option("--size", default=128, show_default=True, help="Side of the tokenizer's samples.")
@click.option("--calibration", default=64, show_default=True, help="Pictures of the generator.")
@click.option("--held-out", default=20, show_default=True, help="Pictures of the generator.")
@click.option("--most", default=1000, show_default=True, help="Images of each set at most.")
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
def main(
    data: Path | None,
    workspaces: Path | None,
    samples: int,
    size: int,
    calibration: int,
    held_out: int,
    most: int,
    output: Path,
) -> None:
    """Search, quantize by the plans found, measure on held-out images; write search.md, .json."""
    images = crops(evaluation_sets(data, ("kodak", "art"), most))
    source = data_folder(data, "calib256") or CALIBRATION_PHOTOGRAPHS
    with tempfile.TemporaryDirectory() as folder:
        root = workspaces or Path(folder)
        generator, searches = generator_rows(root / GENERATOR, calibration, held_out, samples)
        tokenizer, of_tokenizer = tokenizer_rows(root / TOKENIZER, source, images, samples, size)
    found = environment(0)
    searches = [of_tokenizer, *searches]
    counts = ", ".join(f"{len(pictures)} {name}" for name, pictures in images.items())
    about = (
        f"{(__doc__ or '').split('--data ../shared/data')[1].strip()}\n\n"
        f"Tokenizer: {samples} crops of {size}x{size} to search, {counts} images of 256x256 to "
        f"measure, differences paired over images, ± two standard errors. Generator: calibrated on "
        f"{calibration} pictures, of which {samples} rows are searched on, measured on {held_out} "
        f"of another seed."
    )
    write_results(
        "search",
        output,
        report(tokenizer, generator, searches, about, found),
        {
            "environment": found,
            "tokenizer": [asdict(row) for row in tokenizer],
            "generator": [asdict(row) for row in generator],
            "searches": [asdict(row) for row in searches],
        },
    )
