"""Spoil one scale of a quantization at random, and see whether `diagnose` ranks its site first.

python -m arvg_trt.benchmarks.diagnosis.planted_faults WORKSPACE NAME [...] --faults 50

Each fault multiplies or divides one scale of the weight or the input of a site that is drawn at
random by a factor from 8 to 64, drawn evenly in its logarithm. Sites are ranked by what another
factor of one of their scales gains at their own output, and beside it by the error of the model's
outputs; both with one site alone quantized, which a fault elsewhere does not change: the site is
measured anew, the others once for each workspace. Writes results/planted_faults.json and .md.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from ...calibrate.calibrated import Calibrated
from ...explain.site_diagnosis import is_quantized, open_samples, opened_graphs
from ...graph.builder import constant_array
from ...graph.io import graph_bytes, load_graph
from ...numerics.scheme import Plan
from ...quantize.chains import Chain
from ...recipe.validate import ValidateOptions
from ...validate.diagnose.alone import quantized_chains
from ...validate.diagnose.diagnosis import SCALE_RUNS, QuantizedGraph
from ...validate.diagnose.feeds import save_feeds, save_samples
from ...validate.diagnose.scales import better_scales
from ...validate.diagnose.whole import measure_alone
from ...workspace.facts import model_name
from ...workspace.files import decode_json
from ...workspace.workspace import Workspace
from ..common import RESULTS

LEAST, MOST = 8.0, 64.0
KINDS = ("weight_scale", "activation_scale")
MOST_BYTES = 2**29


@dataclass(frozen=True)
class Quantization:
    """A quantized workspace: its graphs, and the error of each site alone without a fault."""

    title: str
    graphs: dict[str, QuantizedGraph]
    errors: dict[str, float]
    gains: dict[str, float]
    scales: dict[str, tuple[str, ...]]
    seconds: float


def open_quantization(root: Path, name: str, samples: int, scratch: Path) -> Quantization:
    """Measure the sites of a quantization once."""
    started = time.monotonic()
    with Workspace(root) as workspace:
        source = Calibrated.open(workspace)
        quantized = workspace.folder("quantize", name)
        given = open_samples(workspace, ValidateOptions(samples=samples)).samples
    saved = given if isinstance(given, Path) else save_samples(given, scratch / "samples")
    graphs, most = source.planned.graphs, None if source.generates else samples
    feeds = save_feeds(source.export, graphs, saved, scratch / "feeds", silent, most=most)
    plan = decode_json(quantized / "plan.json", Plan, do="")
    entries = {entry.name: entry for entry in plan.sites}
    planned = [site for site in source.planned.sites if is_quantized(entries[site.name])]
    opened = opened_graphs(source, quantized, entries, planned, feeds, MOST_BYTES, 0)
    errors: dict[str, float] = {}
    gains: dict[str, float] = {}
    scales: dict[str, tuple[str, ...]] = {}
    for graph, each in opened.items():
        held = load_graph(each.quantized_path).graph.initializers
        for site in each.planned:
            found = [f"{site.name}.{kind}" for kind in KINDS]
            found += [f"{site.name}.{side}.activation_scale" for side in ("left", "right")]
            scales[site.name] = tuple(name for name in found if name in held)
        errors |= alone(each, [site.name for site in each.planned])
        gains |= scale_gains(each, [site.name for site in each.planned])
        print(f"{root.name} {name} {graph}: {len(each.planned)} sites", flush=True)
    title = f"{model_name(source.exported)}, {name}"
    return Quantization(title, opened, errors, gains, scales, time.monotonic() - started)


def silent(task: str, done: int, total: int) -> None:
    """Report nothing."""


def chains_of(graph: QuantizedGraph, names: Sequence[str]) -> list[Chain]:
    """Return the chains of some sites in the Q/DQ graph."""
    sites = [site for site in graph.planned if site.name in names]
    return quantized_chains(graph.align(), graph.quantized_path, sites)


def alone(graph: QuantizedGraph, names: Sequence[str]) -> dict[str, float]:
    """Return the relative error of the graph's outputs with each of these sites alone quantized."""
    ranking, _ = graph.feeds.halves(graph.name)
    return measure_alone(
        graph.fp32_path,
        graph.align(),
        chains_of(graph, names),
        graph.sites,
        partial(graph.fed, ranking),
        lambda done, total: None,
    )


def scale_gains(graph: QuantizedGraph, names: Sequence[str]) -> dict[str, float]:
    """Return how many dB the best factor of a scale gains at each site's output, at most 999.

    Only factors beyond those that calibration leaves count, as in a diagnosis.
    """
    ranking, _ = graph.feeds.halves(graph.name)
    measurement = graph.alone_measurement(chains_of(graph, names))
    found = better_scales(measurement, islice(graph.fed(ranking), SCALE_RUNS))
    return {
        site: max((min(each.gain_db, 999.0) for each in scales if each.is_off), default=0.0)
        for site, scales in found.items()
    }


def spoil(graph: QuantizedGraph, scale: str, factor: float, folder: Path) -> None:
    """Write the Q/DQ graph with one scale multiplied into a folder, which has its weights."""
    model = load_graph(graph.quantized_path)
    value = model.graph.initializers[scale]
    before = constant_array(value)
    value.const_value = ir.tensor((before * factor).astype(before.dtype), name=scale)
    path = folder / graph.quantized_path.name
    path.write_bytes(graph_bytes(model))


def faults(
    quantizations: Sequence[Quantization], count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield one row a fault; the quantizations take turns."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        own = quantizations[number % len(quantizations)]
        site = str(rng.choice([name for name, scales in own.scales.items() if scales]))
        scale = str(rng.choice(own.scales[site]))
        factor = float(np.exp(rng.uniform(math.log(LEAST), math.log(MOST))))
        factor = factor if rng.integers(2) else 1 / factor
        graph = next(g for g in own.graphs.values() if any(s.name == site for s in g.planned))
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for file in graph.quantized.glob("*"):
                if file.suffix == ".data" or file.name == "weights.safetensors":
                    shutil.copyfile(file, folder / file.name)
            spoil(graph, scale, factor, folder)
            spoiled = replace(graph, quantized=folder)
            error = alone(spoiled, [site])[site]
            gain = scale_gains(spoiled, [site])[site]
        others = [noise for name, noise in own.errors.items() if name != site]
        other_gains = [value for name, value in own.gains.items() if name != site]
        yield {
            "model": own.title,
            "site": site,
            "scale": scale.removeprefix(f"{site}."),
            "factor": factor,
            "rank": 1 + sum(not gain > other for other in other_gains),
            "rank_by_error": 1 + sum(not error > noise for noise in others),
            "rank_by_error_before": 1 + sum(not own.errors[site] > noise for noise in others),
            "gain_db": gain,
            "largest_other_gain_db": max(other_gains),
            "sites": len(own.errors),
            "error": error if math.isfinite(error) else None,
            "largest_other": max(others),
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Planted faults",
        "",
        "One scale of a site's weight or input, both drawn at random, is multiplied or divided by "
        "8 to 64. First: the site is the first of those whose scale is off. By its error: it is "
        "the first by the error of the model's outputs with one site alone quantized; before: so "
        "without the fault.",
        "",
        "| Model | Faults | First | By its error first | Before | Largest gain of another |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model in [*models, None]:
        own = [row for row in rows if model in (None, row["model"])]
        kinds = ("rank", "rank_by_error", "rank_by_error_before")
        first = " | ".join(str(sum(row[kind] == 1 for row in own)) for kind in kinds)
        most = max(row["largest_other_gain_db"] for row in own)
        lines.append(f"| {model or 'all'} | {len(own)} | {first} | {most:.1f} dB |")
    missed = [row for row in rows if row["rank"] > 1]
    if missed:
        lines += ["", "Not first:", "", "| Model | Site | Scale | Factor | Rank | Gain |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        lines += [
            f"| {r['model']} | {r['site']} | {r['scale']} | {r['factor']:.3g} | {r['rank']} of "
            f"{r['sites']} | {r['gain_db']:.1f} dB |"
            for r in missed
        ]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("workspaces", nargs=-1, required=True)
@click.option("--faults", "count", default=50, show_default=True)
@click.option("--samples", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(workspaces: tuple[str, ...], count: int, samples: int, seed: int) -> None:
    """Plant faults into the quantizations of workspaces, in turn."""
    if len(workspaces) % 2:
        raise click.UsageError("give WORKSPACE NAME pairs")
    with TemporaryDirectory() as scratch:
        opened = []
        for number, (root, name) in enumerate(zip(workspaces[::2], workspaces[1::2], strict=True)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            opened.append(open_quantization(Path(root), name, samples, folder))
        rows = []
        for row in faults(opened, count, seed):
            rows.append(row)
            print(row, flush=True)
    (RESULTS / "planted_faults.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "planted_faults.md").write_text(table(rows))


if __name__ == "__main__":
    main()
