"""Diagnose a quantization of every kind of model, quantize by the plan, and compare both reports.

python -m arvg_trt.benchmarks.diagnosis.diagnosed [--model NAME ...]

Each mini is quantized as its preset says, and a model of one's own by default. `diagnose` measures
its sites on images that calibration has not seen, and plans to raise the first few; the model is
quantized again by that plan, both are validated on other images still, and `compare` judges the
second by the first. Every command is a process of its own. Writes results/diagnosed.json and .md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ...validate.compare.compare import compare
from ...validate.report.files import load_report
from ..common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    run_measured,
    source_commit,
    write_results,
)

COMMAND = "arvg_trt"
RAISED = 5
PLAIN, BY_PLAN = "plain", "raised"
CALIBRATION = (
    "--images",
    "skimage:motorcycle_left,motorcycle_right,retina,rocket",
    "--size",
    "128",
)
TOKENIZER = ("--images", "skimage:astronaut,coffee,chelsea", "--size", "128")
OTHERS = ("--images", "skimage:camera,page,coins,hubble_deep_field", "--size", "128")
HELD_OUT = ("--samples", "8", "--seed", "2000")


@dataclass(frozen=True, slots=True)
class Model:
    """Say how a model is quantized, and which samples it is diagnosed and validated on."""

    name: str
    quantize: tuple[str, ...]
    calibrate: tuple[str, ...] = ()
    diagnose: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()


GENERATORS = tuple(
    Model(
        f"{family}-mini",
        ("--recipe", f"{family}-w8a8"),
        ("--recipe", f"{family}-w8a8"),
        ("--samples", "4"),
        HELD_OUT,
    )
    for family in ("var", "rar", "par", "llamagen", "mar")
)
MODELS = (
    Model("cosmos-mini-di8x8", ("--recipe", "cosmos-mini-int8"), CALIBRATION, TOKENIZER, OTHERS),
    Model("gsq-mini", (), CALIBRATION, TOKENIZER, OTHERS),
    *GENERATORS,
    Model("onnx", ()),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Hold what a diagnosis found and what its plan gained.

    Ratios are SQNR to FP32 in dB: of the quantization, with the first sites raised, and quantized
    by the plan. `verdicts` count the metrics of the second report by what `compare` says.
    """

    model: str
    sites: int
    graphs: dict[str, float | None]
    db: float | None
    first: str
    share: float
    raised_db: float | None
    reached_db: float | None
    kib: float
    seconds: float
    peak_mb: float
    verdicts: dict[str, int]


def measure(model: Model, scratch: Path) -> Row:
    """Take one model from its export to the comparison of both reports."""
    workspace = str(scratch / "ws")

    def arvg(*words: str) -> tuple[float, float]:
        done = run_measured((COMMAND, *words), scratch)
        click.echo(f"{model.name}: {words[0]} {done.seconds:.1f} s", err=True)
        return done.seconds, done.peak_mb

    calibrate, diagnose, validate = model.calibrate, model.diagnose, model.validate
    if model.name == "onnx":
        files = scratch / "files"
        run_measured(("arvg_trt.demo.own_model", str(files)), scratch)
        graphs = [f"--graph={files / name}.onnx" for name in ("encoder", "decoder")]
        arvg("export", "onnx", workspace, *graphs)
        calibrate = ("--feeds", str(files / "calibration.npz"), "--samples", "16")
        diagnose = validate = ("--feeds", str(files / "held_out.npz"))
    else:
        arvg("export", model.name, workspace)
    arvg("calibrate", workspace, *calibrate)
    arvg("quantize", workspace, *model.quantize, "--name", PLAIN)
    asked = ("--name", PLAIN, "--raise", str(RAISED), "--requantize", *diagnose)
    seconds, peak = arvg("diagnose", workspace, *asked)
    folder = Path(workspace, "diagnose", PLAIN)
    plan = ("--plan", str(folder / "plan.json"))
    arvg("quantize", workspace, *model.quantize, "--name", BY_PLAN, *plan)
    for name in (PLAIN, BY_PLAN):
        arvg("validate", workspace, "--name", name, "--skip-engine", "--rounds", "0", *validate)
    found = json.loads((folder / "diagnosis.json").read_text())
    reports = [(n, load_report(Path(workspace, "validate", n))) for n in (PLAIN, BY_PLAN)]
    compared = compare(reports)
    top = max(found["sites"], key=lambda site: site["share"] or 0)
    return Row(
        model=found["model"],
        sites=len(found["sites"]),
        graphs=found["graphs"],
        db=found["held_out_db"],
        first=top["name"],
        share=top["share"] or 0.0,
        raised_db=found["raised"][-1]["measured_db"],
        reached_db=found["requantized_db"],
        kib=sum(each["kib"] for each in found["raised"]),
        seconds=seconds,
        peak_mb=peak,
        verdicts=dict(
            Counter(
                row.cells[1].verdict
                for row in compared.rows
                if row.decides and "compression" not in row.rule.metric
            )
        ),
    )


def markdown(rows: Sequence[Row], found: dict[str, Any]) -> str:
    """Return the page of results."""

    def ratio(value: float | None) -> str:
        return "no error" if value is None else f"{value:.2f}"

    def verdicts(row: Row) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(row.verdicts.items()))

    table = markdown_table(
        (
            "Model",
            "Sites",
            "SQNR, dB",
            "First site",
            "Its share",
            f"{RAISED} raised",
            "By the plan",
            "KiB more",
            "`diagnose`, s",
            "Peak, MB",
            "Compared",
        ),
        [
            (
                row.model,
                row.sites,
                ratio(row.db),
                f"`{row.first}`",
                f"{100 * row.share:.0f} %",
                ratio(row.raised_db),
                ratio(row.reached_db),
                f"{row.kib:.1f}",
                f"{row.seconds:.0f}",
                f"{row.peak_mb:.0f}",
                verdicts(row),
            )
            for row in rows
        ],
    )
    return f"""# Every kind of model, diagnosed

Each model is quantized as its W8A8 preset says (GSQ and the model of one's own: in INT8 by default)
and diagnosed on samples that calibration has not seen. The first {RAISED} sites of the ranking are
raised to high precision: SQNR of the model's outputs to FP32 before, with them raised in the Q/DQ
graph, and quantized anew by the plan that `diagnose` wrote, which chooses scales anew too. Both
quantizations are validated on other samples, but for the model of one's own, and compared:
measures of accuracy that may fail a comparison, by their verdict. A generator's ratio is the mean
of the errors of its graphs, the image decoder among them.

{table}

{environment_line(found)}
"""


@click.command()
@click.option("--model", "names", multiple=True, help="Only these, by name. [default: all]")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(names: Sequence[str], output: Path) -> None:
    """Diagnose every kind of model."""
    rows = []
    for model in MODELS:
        if names and model.name not in names:
            continue
        with TemporaryDirectory() as scratch:
            rows.append(measure(model, Path(scratch)))
        click.echo(json.dumps(asdict(rows[-1])), err=True)
    found = {**environment(0), "commit": source_commit()}
    values = {"environment": found, "rows": [asdict(row) for row in rows]}
    write_results("diagnosed", output, markdown(rows, found), values)


if __name__ == "__main__":
    main()
