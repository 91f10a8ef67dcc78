"""Measure GPS and scales per token where a model is no generator: a custom graph, a tokenizer.

python -m arvg_trt.benchmarks.one_road

rar-mini's teacher-forced graph is taken as a custom ONNX, on the rows of pictures that it makes
itself: those of the first half calibrate, logits are measured on those of the second. Of
cosmos-mini the inputs of the attention's projections are rounded too, and its pictures are compared
with FP32's. Without `gps` the search chooses between no scaling and the scales of SmoothQuant and
of least predicted error. A scale per token is given where it gains 3 dB on rows left out, to no
input, or by an edited plan to every input whose tokens have positions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from ..api import Workspace
from ..graph.sites import SiteMap, load_sites
from ..numerics.scheme import Plan, Smoothing
from ..recipe.quantize import QuantizeOptions
from ..runtime.generator import TEACHER_FORCED
from ..samples.files import Array, load_sample, sample_files
from ..validate.metrics.image import decibels
from ..validate.report.schema import QDQ, Report
from ..workspace.files import decode_json, encode_json
from .common import (
    CALIBRATION_PHOTOGRAPHS,
    HELD_OUT_PHOTOGRAPHS,
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    source_commit,
    write_results,
)

GENERATOR, TOKENIZER = "rar-mini", "cosmos-mini-di8x8"
FORMATS: Mapping[str, int] = {"W8A8": 8, "W6A6": 6}
SEARCHES: tuple[Smoothing, ...] = ("search", "gps")
LOGITS = "logits"
NO_TOKENS, WINNING, EVERY = "none", "where they gain 3 dB", "every input"
# Of the custom graph: smoothing, and which inputs have scales per token.
VARIANTS: tuple[tuple[Smoothing, str], ...] = (
    ("search", NO_TOKENS),
    ("gps", NO_TOKENS),
    ("search", WINNING),
    ("search", EVERY),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one quantization: SQNR of held-out logits or PSNR to FP32's pictures, in dB.

    `by_gps` and `per_token` count the inputs that are scaled by GPS and that have a scale per
    token, of `inputs` rounded ones.
    """

    model: str
    format: str
    smoothing: str
    tokens: str
    db: float
    by_gps: int
    per_token: int
    inputs: int


def split_rows(samples: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the arrays of the first and of the second half of the saved rows, by input."""
    rows = [load_sample(path) for path in sample_files(samples)]
    middle = len(rows) // 2
    return joined(rows[:middle]), joined(rows[middle:])


def joined(rows: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def with_token_scales(plan: Plan, site_map: SiteMap) -> Plan:
    """Return a plan whose rounded inputs have a scale per token wherever tokens have positions."""
    known = {site.name for site in site_map.sites if site.knows_positions}
    sites = tuple(
        entry
        if entry.activation is None or entry.name not in known
        else msgspec.structs.replace(
            entry,
            activation=msgspec.structs.replace(entry.activation, granularity="per_position"),
        )
        for entry in plan.sites
    )
    return msgspec.structs.replace(plan, sites=sites)


def read_plan(quantized: Path) -> Plan:
    return decode_json(quantized / "plan.json", Plan, do="quantize again")


def counts(plan: Plan, site_map: SiteMap) -> tuple[int, int, int]:
    """Return how many inputs GPS scales, how many have a scale per token, and how many there are.

    Sites that read one tensor are one input.
    """
    tensors = {site.name: (site.graph, site.input) for site in site_map.sites}
    entries = {tensors[e.name]: e for e in plan.sites if e.activation is not None}.values()
    by_gps = sum(entry.smoothing == "gps" for entry in entries)
    per_token = sum(
        entry.activation is not None and entry.activation.granularity == "per_position"
        for entry in entries
    )
    return by_gps, per_token, len(entries)


def custom_rows(root: Path, pictures: int) -> Iterator[Row]:
    """Quantize the graph of all positions as a custom one, by format, search and token scales."""
    made = Workspace(root / GENERATOR)
    graph = made.export(GENERATOR).folder / f"{TEACHER_FORCED}.onnx"
    fitted, held_out = split_rows(made.calibrate(samples=pictures).folder / "samples")
    for name, arrays in (("fitted", fitted), ("held_out", held_out)):
        np.savez(root / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    custom = Workspace(root / "custom")
    site_map = load_sites(custom.export("onnx", graphs=[graph]).folder)
    count = len(next(iter(fitted.values())))
    custom.calibrate(feeds=str(root / "fitted.npz"), samples=count, batch_size=1)
    for label, bits in FORMATS.items():
        even = QuantizeOptions(weight_bits=bits, activation_bits=bits)
        for smoothing, tokens in VARIANTS:
            name = f"{label}-{smoothing}-{tokens.replace(' ', '-')}"
            plan = None
            if tokens == EVERY:
                without = custom.path / "quantize" / f"{label}-{smoothing}-{NO_TOKENS}"
                plan = root / f"{name}.json"
                plan.write_bytes(encode_json(with_token_scales(read_plan(without), site_map)))
            done = custom.quantize(
                name, even, plan=plan, smoothing=smoothing, token_wise=tokens != NO_TOKENS
            )
            report = custom.validate(
                name, feeds=str(root / "held_out.npz"), rounds=0, skip_engine=True
            )
            found = counts(read_plan(done.folder), site_map)
            yield Row(GENERATOR, label, str(smoothing), tokens, logits_db(report), *found)


def logits_db(report: Report) -> float:
    """Return the SQNR of the logits that the Q/DQ graph makes."""
    found = {row.output.rpartition("/")[2]: row for row in report.outputs[QDQ]}
    return decibels(found[LOGITS].sqnr_db)


def tokenizer_rows(root: Path, samples: int, size: int) -> Iterator[Row]:
    """Quantize a tokenizer with its attention's projections, by format and search."""
    workspace = Workspace(root / TOKENIZER)
    site_map = load_sites(workspace.export(TOKENIZER).folder)
    workspace.calibrate(images=CALIBRATION_PHOTOGRAPHS, samples=samples, size=size)
    for label, bits in FORMATS.items():
        even = QuantizeOptions(weight_bits=bits, activation_bits=bits, attention_inputs=True)
        for smoothing in SEARCHES:
            name = f"{label}-{smoothing}"
            done = workspace.quantize(name, even, smoothing=smoothing)
            report = workspace.validate(
                name, images=HELD_OUT_PHOTOGRAPHS, size=size, rounds=0, skip_engine=True
            )
            found = counts(read_plan(done.folder), site_map)
            to_fp32 = decibels(report.accuracy[QDQ].psnr_vs_fp32.mean)
            yield Row(TOKENIZER, label, str(smoothing), NO_TOKENS, to_fp32, *found)


def table(rows: Sequence[Row]) -> str:
    header = ("model", "format", "smoothing", "scales per token", "dB", "by GPS", "per token")
    return markdown_table(
        header,
        [
            (
                *(row.model, row.format, row.smoothing, row.tokens),
                "exact" if math.isinf(row.db) else f"{row.db:.2f}",
                *(f"{row.by_gps} of {row.inputs}", f"{row.per_token} of {row.inputs}"),
            )
            for row in rows
        ],
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pictures", default=32, show_default=True, help="That the generator makes.")
@click.option("--samples", default=8, show_default=True, help="Crops for the tokenizer.")
@click.option("--size", default=128, show_default=True, help="Side of crops and pictures.")
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
def main(pictures: int, samples: int, size: int, output: Path) -> None:
    """Measure and write one_road.md and .json."""
    commit = source_commit()  # before the code can change
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for found in (
            custom_rows(Path(scratch), pictures),
            tokenizer_rows(Path(scratch), samples, size),
        ):
            for row in found:
                click.echo(row, err=True)
                rows.append(row)
    machine = environment(0)
    command = (
        f"python -m arvg_trt.benchmarks.one_road --pictures {pictures} --samples {samples} "
        f"--size {size}"
    )
    text = f"""# GPS and scales per token outside generators

{(__doc__ or "").split("benchmarks.one_road")[1].strip()}

{pictures} pictures of {GENERATOR}, dB is the SQNR of the logits on the rows left out.
{samples} crops for {TOKENIZER}, dB is the PSNR to FP32's pictures, its mean over other photographs.

{table(rows)}

Written by `{command}` at commit {commit}.
{environment_line(machine)}
"""
    values = {
        "command": command,
        "commit": commit,
        "environment": machine,
        "rows": [asdict(row) for row in rows],
    }
    write_results("one_road", output, text, values)
    click.echo(text)


if __name__ == "__main__":
    main()
