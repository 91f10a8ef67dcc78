"""What each step of PTQ4ARVG gains, on generators of ours: the ablation table.

python -m arvg_trt.benchmarks.ablation --model var-mini [--workspace WS]
python -m arvg_trt.benchmarks.ablation --model mar-mini
python -m arvg_trt.benchmarks.ablation --model planted --samples 16 --held-out 4 --peers

Logits are those of all positions, teacher-forced on pictures that the FP32 model made from a seed
that calibration did not use; conditional and null rows alike. KL is that of the quantized from the
FP32 distribution, in nats a token. Sites are those whose outputs no fold changes: proj, fc1 and
fc2. "Tied" tokens are those whose two likeliest logits are closer in FP32 than the root mean
square error of a logit: a coin decides whether their top-1 agrees.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from ..artifacts import Workspace
from ..pipeline.calibrate import calibrate_stage
from ..pipeline.common import load_sites
from ..pipeline.export import export_stage
from ..pipeline.generated_samples import generated_rows
from ..pipeline.quantize import quantize_stage
from ..recipe import CalibrateOptions, QuantizeOptions, with_changes
from ..runtime.feeds import save_sample
from ..runtime.generator import FULL, Generator
from .ablation_mar import OF_MAR, MarRow, mar_cells, mar_setbacks, mar_table, run_mar_steps
from .ablation_measure import Distance, comparable, graph_model, measure
from .ablation_peers import peers
from .common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    markdown_table,
    write_results,
)
from .planted import export_planted

PLANTED = "planted"
MAR = "mar-mini"
MODELS = ("var-mini", "rar-mini", "par-mini", MAR, PLANTED)
RowT = TypeVar("RowT")
HELD_OUT_SEED = 2000
BATCH = 4
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "W8A8": {"weight_bits": 8, "activation_bits": 8},
    "W6A6": {"weight_bits": 6, "activation_bits": 6},
    "W8A16": {"weight_bits": 8, "activation_bits": 32},
    "W6A16": {"weight_bits": 6, "activation_bits": 32},
    "W4A16": {"quantize_method": "blockwise", "activation_bits": 32},
    "FP8": {"quantize_method": "fp8"},
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "per tensor": {"smoothing": 0.0, "token_wise": False},
    "SmoothQuant": {"smoothing": 0.5, "token_wise": False},
    "GPS": {"smoothing": "gps", "token_wise": False},
    "GPS, a scale a position": {"smoothing": "gps"},
    "GPS, a scale a position, weights rounded with data": {"smoothing": "gps", "rounding": "gptq"},
    "searched scaling, a scale a position": {"smoothing": "search"},
    "searched scaling, a scale a position, weights rounded with data": {
        "smoothing": "search",
        "rounding": "gptq",
    },
}
WEIGHTS_ALONE: Mapping[str, Mapping[str, Any]] = {
    "nearest": {},
    "rounded with data": {"rounding": "gptq"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One quantization; `tokens` is the share of tokens of generated pictures that stay."""

    format: str
    step: str
    distance: Distance
    tokens: float | None = None


def prepare(workspace: Workspace, model: str, checkpoint: Path) -> Path:
    """Export the model where the workspace has none; returns the folder of its graphs."""
    exported = workspace.folder("export")
    if not (exported / "manifest.json").is_file():
        if model == PLANTED:
            export_planted(workspace, checkpoint, QuietReporter())
        else:
            export_stage(workspace, model, None, "skimage", QuietReporter())
    return exported


def steps_of(name: str) -> Iterator[tuple[str, QuantizeOptions]]:
    """Steps of a format; one with float inputs has nothing to scale, FP8 no integers to round."""
    base = with_changes(QuantizeOptions(), **FORMATS[name])
    steps = WEIGHTS_ALONE if base.activation_bits == 32 else STEPS
    for step, changes in steps.items():
        if "rounding" not in changes or base.quantize_method != "fp8":
            yield step, with_changes(base, **changes)


def pictures(folder: Path, count: int) -> np.ndarray[Any, Any]:
    """Tokens of pictures of the first classes in turn, of the held-out seed."""
    generator = Generator.open(folder)
    labels = np.arange(count) % generator.spec.num_classes
    return generator.generate(labels, seed=HELD_OUT_SEED).tokens


def quantized_steps(
    workspace: Workspace, formats: Sequence[str]
) -> Iterator[tuple[str, str, Path]]:
    """Each format and step, and the folder of what it makes; quantized when asked for."""
    for name in formats:
        for k, (step, options) in enumerate(steps_of(name)):
            made = quantize_stage(workspace, f"ablation-{name}-{k}", options, QuietReporter())
            yield name, step, made.folder


def run_steps(
    workspace: Workspace,
    exported: Path,
    formats: Sequence[str],
    held_out: Path,
    count: int,
) -> Iterator[Row]:
    """Quantize by each step of each format, and measure it; `count` pictures are generated."""
    tensors = comparable(load_sites(exported).of_graph(FULL))
    wanted = pictures(exported, count) if count else None
    reference = graph_model(exported, tensors)
    for name, step, made in quantized_steps(workspace, formats):
        found = measure(reference, graph_model(made, tensors), held_out, BATCH, tensors)
        same = None if wanted is None else float((pictures(made, count) == wanted).mean())
        yield Row(name, step, found, same)


def run_peers(
    exported: Path, samples: Path, checkpoint: Path | None, held_out: Path
) -> Iterator[Row]:
    reference = graph_model(exported)
    for name, make in peers(exported, samples, checkpoint):
        found = make()
        if found is not None:
            yield Row("W8A8", name, measure(reference, found, held_out, BATCH))


def table(rows: Sequence[Row]) -> str:
    header = (
        "format",
        "",
        "KL, nats",
        "top-1 equal",
        "tied",
        "logits SQNR, dB",
        "least site, dB",
        "median site, dB",
        "generated tokens equal",
    )
    return markdown_table(header, [cells(row) for row in rows])


def cells(row: Row) -> tuple[str, ...]:
    found = row.distance
    sites = np.array(list(found.sites_db.values()))
    return (
        row.format,
        row.step,
        f"{found.kl:.6f}",
        f"{found.top1:.2%}",
        f"{found.tied:.1%}",
        f"{found.logits_db:.1f}",
        *((f"{sites.min():.1f}", f"{np.median(sites):.1f}") if sites.size else ("", "")),
        "" if row.tokens is None else f"{row.tokens:.1%}",
    )


def setbacks(rows: Sequence[Row]) -> list[str]:
    """Steps of ours whose KL is above that of the step before, within a format."""
    return [
        f"{row.format}: {row.step} does not help over {before.step} "
        f"(KL {row.distance.kl:.6f} after {before.distance.kl:.6f} nats)."
        for before, row in pairwise(rows)
        if row.format == before.format
        and {row.step, before.step} <= STEPS.keys() | WEIGHTS_ALONE.keys()
        and row.distance.kl > before.distance.kl
    ]


@dataclass(frozen=True, slots=True)
class Findings:
    """Rows as data and as a table, what their numbers are, and the steps that did not help."""

    rows: Sequence[Row] | Sequence[MarRow]
    about: str
    table: str
    setbacks: list[str]


def report(model: str, findings: Findings, found: Mapping[str, Any], counts: str) -> str:
    lines = "\n".join(f"- {line}" for line in findings.setbacks)
    return f"""# Ablation on {model}

{findings.about.strip()}

{counts} Attention products and the embedding of latents stay FP32.

{findings.table}

{lines or "Each step lowers the error."}

{environment_line(found)}
"""


def told(rows: Iterable[RowT], cells: Callable[[RowT], tuple[str, ...]]) -> Iterator[RowT]:
    """The rows, each said as it comes."""
    for row in rows:
        click.echo(cells(row), err=True)
        yield row


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="var-mini", show_default=True)
@click.option("--workspace", type=click.Path(path_type=Path), help="Kept; else a temporary one.")
@click.option("--format", "formats", multiple=True, type=click.Choice(list(FORMATS)))
@click.option("--samples", default=64, show_default=True, help="Pictures to calibrate on.")
@click.option("--held-out", default=20, show_default=True, help="Pictures to measure on.")
@click.option("--pictures", "count", default=0, show_default=True, help="To generate and compare.")
@click.option("--peers", "with_peers", is_flag=True, help="Other tools beside us.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(
    model: str,
    workspace: Path | None,
    formats: Sequence[str],
    samples: int,
    held_out: int,
    count: int,
    with_peers: bool,
    output: Path,
) -> None:
    """Quantize step by step and write ablation_MODEL.md and .json."""
    if with_peers and model == MAR:
        raise click.UsageError("peers are compared by their logits, which a MAR has none of")
    rows: list[Row] = []
    chosen = formats or ("W8A8", "W6A6")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = workspace or scratch / "ws"
        checkpoint = root.parent / f"{root.name}-checkpoint"
        with Workspace(root) as opened:
            exported = prepare(opened, model, checkpoint)
            calibrate_stage(
                opened, CalibrateOptions(samples=samples, batch_size=BATCH), QuietReporter()
            )
            if model == MAR:
                made = quantized_steps(opened, chosen)
                steps = run_mar_steps(exported, made, held_out, count, HELD_OUT_SEED)
                of_mar = list(told(steps, mar_cells))
                findings = Findings(of_mar, OF_MAR, mar_table(of_mar), mar_setbacks(of_mar))
            else:
                held = scratch / "held"
                held.mkdir()
                options = CalibrateOptions(samples=held_out, seed=HELD_OUT_SEED)
                for k, sample in enumerate(generated_rows(exported, options, QuietReporter())):
                    save_sample(sample, held, k)
                if with_peers:
                    seen = opened.folder("calibrate") / "samples"
                    source = checkpoint if model == PLANTED else None
                    rows.extend(run_peers(exported, seen, source, held))
                rows.extend(told(run_steps(opened, exported, chosen, held, count), cells))
                about = __doc__.split("--peers")[1]
                findings = Findings(rows, about, table(rows), setbacks(rows))
    found = environment(0)
    counts = (
        f"Calibrated on {samples} pictures of seed 0, measured on {held_out} of seed "
        f"{HELD_OUT_SEED}."
    )
    write_results(
        f"ablation_{model}",
        output,
        report(model, findings, found, counts),
        {"environment": found, "rows": [asdict(row) for row in findings.rows]},
    )


if __name__ == "__main__":
    main()
