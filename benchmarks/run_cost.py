"""Measure what a whole run takes, stage by stage: the figures from which a dry run estimates.

python -m arvg_trt.benchmarks.run_cost FOLDER [--model var-d16 --preset var-w8a8]

A model without shipped weights gets random ones of its published sizes: they take the same time,
memory and disk. The run is `arvg-trt run` as a user calls it, in a process of its own; it leaves
what each stage took in its workspace. Besides the table this replaces the model's row in
`explain/run_costs.json`, which dry runs read.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import click
import msgspec

from ..explain.dry_run import STAGES
from ..explain.recipes import adapt_recipe
from ..explain.run_costs import COSTS, RunCost, measured_runs
from ..families.variants import find_model
from ..recipe.file import load_recipe
from ..workspace.facts import is_of_cpu
from ..workspace.times import Took, read_times
from .common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    run_measured,
    source_commit,
    write_results,
)
from .random_checkpoint import checkpoint_of, weights_of


def run(folder: Path, model: str, preset: str) -> RunCost:
    """Run a preset on a model from its checkpoint on, and return what its stages took."""
    entry = find_model(model)
    checkpoint = checkpoint_of(entry, folder / f"{model}-checkpoint")
    workspace = folder / f"{model}-run"
    words = ["run", preset, "--model", model, "--checkpoint", str(checkpoint)]
    run_measured(["arvg_trt", *words, "--workspace", str(workspace)], folder)
    recipe = adapt_recipe(preset, load_recipe(preset), model)
    return RunCost(
        model=model,
        preset=preset,
        samples=recipe.calibrate.count,
        machine=f"{len(os.sched_getaffinity(0))} cores of {environment(0)['cpu']}",
        measured_on=datetime.date.today().isoformat(),
        stages=by_stage(read_times(workspace)),
    )


def by_stage(times: dict[str, Took]) -> dict[str, Took]:
    """Return what each stage took; of several CPU engines the sum, of TensorRT's nothing."""
    found: dict[str, Took] = {}
    for place, took in times.items():
        stage = "build" if place.startswith("engines/") else place.partition("/")[0]
        if stage == "build" and not is_of_cpu(place):
            continue
        before = found.get(stage, Took(seconds=0, bytes=0, memory=0))
        found[stage] = Took(
            seconds=before.seconds + took.seconds,
            bytes=before.bytes + took.bytes,
            memory=max(before.memory or 0, took.memory or 0) or None,
        )
    return {stage: found[stage] for stage in STAGES if stage in found}


def keep(cost: RunCost) -> list[RunCost]:
    """Replace the row of a model in what dry runs read, and return all rows."""
    rows = [each for each in measured_runs() if each.model != cost.model]
    rows = sorted([*rows, cost], key=lambda each: each.model)
    COSTS.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    return rows


def table(rows: list[RunCost]) -> str:
    """Return a row for each model and stage."""
    return markdown_table(
        ("model", "preset", "stage", "s", "peak of memory, GB", "disk, MB"),
        [
            (
                each.model,
                each.preset,
                stage,
                f"{took.seconds:.0f}",
                "" if took.memory is None else f"{took.memory / 1e9:.2f}",
                f"{took.bytes / 1e6:,.0f}",
            )
            for each in rows
            for stage, took in each.stages.items()
        ],
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", default="var-d16", show_default=True, help="What is run.")
@click.option("--preset", default="var-w8a8", show_default=True, help="By which recipe.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="Results folder.")
def main(folder: Path, model: str, preset: str, output: Path) -> None:
    """Run a preset in FOLDER, which keeps what is made; write run_cost.md and .json."""
    folder.mkdir(parents=True, exist_ok=True)
    cost = run(folder, model, preset)
    rows = keep(cost)
    text = f"""# What a run takes

`arvg-trt run PRESET --model MODEL` from the checkpoint to the report, CPU engines only; the peak is
of the process, with its libraries, and of the one that it waits for. Published models have random
weights of their sizes. A stage without a row was not measured.

{table(rows)}

The last model was {model}, with {weights_of(find_model(model))}, by
`python -m arvg_trt.benchmarks.run_cost`, commit {source_commit()}.

{environment_line(environment(0))}
"""
    write_results("run_cost", output, text, {"rows": msgspec.to_builtins(rows)})


if __name__ == "__main__":
    main()
