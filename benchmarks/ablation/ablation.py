"""Measure what each step of PTQ4ARVG gains, on generators of ours: the ablation table.

python -m arvg_trt.benchmarks.ablation --model var-mini [--workspace WS]
python -m arvg_trt.benchmarks.ablation --model mar-mini
python -m arvg_trt.benchmarks.ablation --model planted --samples 32 --held-out 4 --peers
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ...graph.sites import SiteMap, load_sites
from ...pipeline.calibrate import calibrate_stage
from ...pipeline.export import export_any
from ...pipeline.quantize import quantize_stage
from ...recipe.base import with_changes
from ...recipe.calibrate import CalibrateOptions
from ...recipe.quantize import QuantizeOptions
from ...workspace.workspace import Workspace
from ..common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    generated_rows,
    source_commit,
    write_results,
)
from ..planted import export_planted
from .logits import OF_LOGITS, Row, cells, logit_setbacks, run_peers, run_steps, table
from .mar import OF_MAR, MarRow, mar_cells, mar_setbacks, mar_table, run_mar_steps

PLANTED = "planted"
MAR = "mar-mini"
MODELS = ("var-mini", "rar-mini", "par-mini", MAR, PLANTED)
RowT = TypeVar("RowT")
HELD_OUT_SEED = 2000
DGC = "samples chosen by DGC"
MODULATION_ROLE = "adaln"  # of linears that make gains, shifts and gates from the condition
BATCH = 4
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "W8A8": {"weight_bits": 8, "activation_bits": 8},
    "W6A6": {"weight_bits": 6, "activation_bits": 6},
    "W8A16": {"weight_bits": 8, "activation_bits": 32},
    "W6A16": {"weight_bits": 6, "activation_bits": 32},
    "W4A16": {"quantize_method": "blockwise", "activation_bits": 32},
    "FP8": {"quantize_method": "fp8"},
}
ROUNDED = "GPS, a scale a position, weights rounded with data"
# No layer after the head evens out its error, and a modulation scales all rows of an image.
HEAD = f"{ROUNDED}, the head in high precision"
MODULATION = f"{HEAD}, adaLN with 8-bit weights alone"
SMOOTHED = f"{MODULATION}, SmoothQuant instead of GPS"
STEPS: Mapping[str, Mapping[str, Any]] = {
    "per tensor": {"smoothing": 0.0, "token_wise": False},
    "SmoothQuant": {"smoothing": 0.5, "token_wise": False},
    "GPS": {"smoothing": "gps", "token_wise": False},
    "GPS, a scale a position": {"smoothing": "gps"},
    ROUNDED: {"smoothing": "gps", "rounding": "gptq"},
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


def prepare(workspace: Workspace, model: str, checkpoint: Path) -> Path:
    """Export the model where the workspace has none; returns the folder of its graphs."""
    exported = workspace.folder("export")
    if not (exported / "manifest.json").is_file():
        if model == PLANTED:
            export_planted(workspace, checkpoint, QuietReporter())
        else:
            export_any(workspace, model, None, "skimage", (), QuietReporter())
    return exported


def kept_steps(site_map: SiteMap) -> dict[str, Mapping[str, Any]]:
    """Return further steps, which leave in high precision what costs most, where a model has it."""
    heads = tuple(sorted({s.name for s in site_map.sites if s.output == "logits"}))
    without_heads = {**STEPS[ROUNDED], "exclude": heads}
    found: dict[str, Mapping[str, Any]] = {HEAD: without_heads} if heads else {}
    if heads and any(s.role == MODULATION_ROLE for s in site_map.calibrated.sites):
        found[MODULATION] = {**without_heads, "adaln_bits": 8}
        found[SMOOTHED] = {**found[MODULATION], "smoothing": STEPS["SmoothQuant"]["smoothing"]}
    return found


def steps_of(
    name: str, further: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[tuple[str, QuantizeOptions]]:
    """Yield steps of a format; float inputs have nothing to scale, FP8 no integers to round."""
    base = with_changes(QuantizeOptions(), **FORMATS[name])
    floats = base.activation_bits == 32
    steps = WEIGHTS_ALONE if floats else {**STEPS, **(further or {})}
    for step, changes in steps.items():
        if "rounding" not in changes or base.quantize_method != "fp8":
            yield step, with_changes(base, **changes)


def quantized_steps(
    workspace: Workspace, formats: Sequence[str], again: CalibrateOptions | None = None
) -> Iterator[tuple[str, str, Path]]:
    """Yield each format and step with the folder of its quantization, made when it is asked for.

    With `again` the last step of all sites a second time, on samples of that calibration.
    """
    further = kept_steps(load_sites(workspace.folder("export")))
    for name in formats:
        for k, (step, options) in enumerate(steps_of(name, further)):
            made = quantize_stage(workspace, f"ablation-{name}-{k}", options, QuietReporter())
            yield name, step, made.folder
    if again is None:
        return
    calibrate_stage(workspace, again, QuietReporter())
    for name in formats:
        *_, (step, options) = steps_of(name)
        made = quantize_stage(workspace, f"ablation-{name}-dgc", options, QuietReporter())
        yield name, f"{step}, {DGC}", made.folder


@dataclass(frozen=True, slots=True)
class Findings:
    """Hold rows as data and as a table, what their numbers are, and the steps that did not help."""

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

Commit {source_commit()}. {environment_line(found)}
"""


def printed(rows: Iterable[RowT], cells: Callable[[RowT], tuple[str, ...]]) -> Iterator[RowT]:
    """Yield the rows; print each as it comes."""
    for row in rows:
        click.echo(cells(row), err=True)
        yield row


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="var-mini", show_default=True)
@click.option("--workspace", type=click.Path(path_type=Path), help="Kept; else a temporary one.")
@click.option("--format", "formats", multiple=True, type=click.Choice(list(FORMATS)))
@click.option("--samples", default=64, show_default=True, help="Pictures to calibrate on.")
@click.option("--held-out", default=20, show_default=True, help="Pictures to measure on.")
@click.option(
    "--pictures",
    "count",
    default=0,
    show_default=True,
    help="To generate and compare, of a model with logits.",
)
@click.option("--dgc", "with_dgc", is_flag=True, help="The last step on chosen samples as well.")
@click.option("--peers", "with_peers", is_flag=True, help="Other tools beside us.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(
    model: str,
    workspace: Path | None,
    formats: Sequence[str],
    samples: int,
    held_out: int,
    count: int,
    with_dgc: bool,
    with_peers: bool,
    output: Path,
) -> None:
    """Quantize step by step and write ablation_MODEL.md and .json."""
    if with_peers and model == MAR:
        raise click.UsageError("peers are compared by their logits, which a MAR has none of")
    rows: list[Row] = []
    chosen = formats or ("W8A8", "W6A6")
    counts = (
        f"Calibrated on {samples} pictures of seed 0, measured on {held_out} of seed "
        f"{HELD_OUT_SEED}."
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = workspace or scratch / "ws"
        checkpoint = root.parent / f"{root.name}-checkpoint"
        with Workspace(root) as opened:
            exported = prepare(opened, model, checkpoint)
            plain = CalibrateOptions(samples=samples, batch_size=BATCH)
            dgc = with_changes(plain, dgc=True) if with_dgc else None
            calibrate_stage(opened, plain, QuietReporter())
            if model == MAR:
                made = quantized_steps(opened, chosen, dgc)
                of_mar = list(
                    printed(run_mar_steps(opened, made, held_out, HELD_OUT_SEED), mar_cells)
                )
                findings = Findings(of_mar, OF_MAR, mar_table(of_mar), mar_setbacks(of_mar))
            else:
                held = generated_rows(exported, scratch / "held", held_out, HELD_OUT_SEED)
                if with_peers:
                    seen = opened.folder("calibrate") / "samples"
                    planted = checkpoint if model == PLANTED else None
                    rows.extend(run_peers(exported, seen, planted, held))
                made = quantized_steps(opened, chosen, dgc)
                steps = run_steps(exported, made, held, count, HELD_OUT_SEED)
                rows.extend(printed(steps, cells))
                findings = Findings(rows, OF_LOGITS, table(rows), logit_setbacks(rows))
    found = environment(0)
    write_results(
        f"ablation_{model}",
        output,
        report(model, findings, found, counts),
        {"environment": found, "counts": counts, "rows": [asdict(row) for row in findings.rows]},
    )
