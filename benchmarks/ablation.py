"""What each step of PTQ4ARVG gains, on a generator of ours: the ablation table.

python -m arvg_trt.benchmarks.ablation [--workspace WS]

Logits are those of all positions, teacher-forced on pictures that the FP32 model made from a seed
that calibration did not use; conditional and null rows alike. KL is that of the quantized from the
FP32 distribution, in nats a token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from ..artifacts import Workspace
from ..calibrate.view_passes import quantizable
from ..pipeline.calibrate import calibrate_stage
from ..pipeline.common import load_sites
from ..pipeline.export import export_stage
from ..pipeline.generated_samples import FULL, generated_rows
from ..pipeline.probing import probe, site_outputs
from ..pipeline.quantize import quantize_stage
from ..recipe import CalibrateOptions, QuantizeOptions
from ..runtime.feeds import sample_batches, sample_files, save_sample
from ..sites import Site
from ..validate.logits import LogitsAccuracy, LogitsTally
from ..validate.metrics import Energy, decibels
from .common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    markdown_table,
    write_results,
)

MODEL = "var-mini"
HELD_OUT_SEED = 2000
BATCH = 8
STEPS: Mapping[str, QuantizeOptions] = {
    "per tensor": QuantizeOptions(smoothing=0.0, token_wise=False),
    "+ SmoothQuant": QuantizeOptions(smoothing=0.5, token_wise=False),
    "+ GPS": QuantizeOptions(smoothing="gps", token_wise=False),
    "+ a scale a position": QuantizeOptions(smoothing="gps"),
    "least predicted error, per tensor": QuantizeOptions(smoothing="search", token_wise=False),
    "least predicted error, a scale a position": QuantizeOptions(smoothing="search"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One quantization; `sites_db` is the least and the median SQNR of what its linears give."""

    bits: int
    step: str
    kl: float
    top1: float
    logits_db: float
    least_site_db: float
    median_site_db: float


def comparable(sites: Sequence[Site]) -> dict[str, str]:
    """By site the outputs that no fold changes, so that both graphs mean the same by them."""
    chosen = quantizable(sites)
    parts = [p for s in chosen if s.producer_fold for p in s.producer_fold.divide]
    changed = {part.initializer for part in parts}
    outputs = site_outputs(sites)
    return {
        s.name: outputs[s.name] for s in chosen if s.weight not in changed and s.name in outputs
    }


def measure(
    export: Path, folder: Path, samples: Path, sites: Sequence[Site]
) -> tuple[LogitsAccuracy, dict[str, float]]:
    """The logits against FP32's, and SQNR by site."""
    tensors = comparable(sites)
    sessions = [probe(path / f"{FULL}.onnx", list(tensors.values())) for path in (export, folder)]
    logits, energies = LogitsTally(), {site: Energy() for site in tensors}
    for _, feeds in sample_batches(sample_files(samples), BATCH, sessions[0].inputs):
        wanted, found = (s.run(feeds, ["logits", *tensors.values()]) for s in sessions)
        rows = len(feeds["labels"])
        tokens = wanted["logits"].argmax(axis=-1)  # what the cross-entropy, not shown, is of
        logits.add(wanted["logits"], found["logits"], tokens, np.ones(rows, bool))
        for site, tensor in tensors.items():
            energies[site].add(wanted[tensor], found[tensor])
    return logits.result(), {site: energy.decibels() for site, energy in energies.items()}


def run_steps(root: Path, bits: Sequence[int], calibration: int, held_out: int) -> list[Row]:
    reporter = QuietReporter()
    with Workspace(root) as workspace, tempfile.TemporaryDirectory() as scratch:
        exported = workspace.folder("export")
        if not (exported / "manifest.json").is_file():
            export_stage(workspace, MODEL, None, "skimage", reporter)
        calibrate_stage(
            workspace, CalibrateOptions(samples=calibration, batch_size=BATCH), reporter
        )
        options = CalibrateOptions(samples=held_out, seed=HELD_OUT_SEED)
        for k, row in enumerate(generated_rows(exported, options, reporter)):
            save_sample(row, Path(scratch), k)
        sites = load_sites(exported).of_graph(FULL)
        rows = []
        for b in bits:
            for k, (step, options_of) in enumerate(STEPS.items()):
                chosen = QuantizeOptions(
                    weight_bits=b,
                    activation_bits=b,
                    smoothing=options_of.smoothing,
                    token_wise=options_of.token_wise,
                )
                made = quantize_stage(workspace, f"ablation-{b}-{k}", chosen, reporter)
                logits, by_site = measure(exported, made.folder, Path(scratch), sites)
                found = np.array(list(by_site.values()))
                rows.append(
                    Row(
                        bits=b,
                        step=step,
                        kl=logits.kl,
                        top1=logits.top1,
                        logits_db=decibels(logits.sqnr_db),
                        least_site_db=float(found.min()),
                        median_site_db=float(np.median(found)),
                    )
                )
                click.echo(rows[-1], err=True)
    return rows


def report(rows: Sequence[Row], found: Mapping[str, object], calibration: int, held: int) -> str:
    header = (
        "bits",
        "",
        "KL, nats",
        "top-1 equal",
        "logits SQNR, dB",
        "least site, dB",
        "median site, dB",
    )
    lines = [
        (
            f"W{row.bits}A{row.bits}",
            row.step,
            f"{row.kl:.5f}",
            f"{row.top1:.2%}",
            f"{row.logits_db:.1f}",
            f"{row.least_site_db:.1f}",
            f"{row.median_site_db:.1f}",
        )
        for row in rows
    ]
    return f"""# Ablation on {MODEL}

{__doc__.split("[--workspace WS]")[1].strip()}

Calibrated on {calibration} pictures of seed 0, measured on {held} of seed {HELD_OUT_SEED}.
Attention products and the embedding of latents stay FP32. Sites are those whose outputs no fold
changes: proj, fc1, fc2 of every block.

{markdown_table(header, lines)}

{environment_line(found)}
"""


@click.command()
@click.option("--workspace", type=click.Path(path_type=Path), help="Kept; else a temporary one.")
@click.option("--bits", multiple=True, type=int, default=(8, 6), show_default=True)
@click.option("--samples", default=64, show_default=True, help="Pictures to calibrate on.")
@click.option("--held-out", default=20, show_default=True, help="Pictures to measure on.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(
    workspace: Path | None, bits: Sequence[int], samples: int, held_out: int, output: Path
) -> None:
    """Quantize step by step and write ablation.md and .json."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = run_steps(workspace or Path(scratch) / "ws", bits, samples, held_out)
    found = environment(0)
    write_results(
        "ablation",
        output,
        report(rows, found, samples, held_out),
        {"environment": found, "rows": [asdict(row) for row in rows]},
    )


if __name__ == "__main__":
    main()
