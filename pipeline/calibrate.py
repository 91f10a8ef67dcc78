"""Stage 2: images, arrays or generated tokens -> saved samples and streaming statistics."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ..calibrate.executors import Execution, run_tasks
from ..calibrate.facts import CalibrationFacts
from ..calibrate.shards import STATISTICS, combine_parts, say_convergence
from ..errors import RecipeError
from ..graph.sites import load_sites
from ..recipe.options import CalibrateOptions
from ..runtime.generator import read_spec
from ..samples.base import SampleSource
from ..samples.classes import saved_classes
from ..samples.files import count_batches, sample_files, save_labels, save_sample
from ..samples.images import skipped_text
from ..samples.sources import open_calibration, shard_of
from ..workspace.facts import Exported, export_digest, facts
from ..workspace.manifest import Manifest
from ..workspace.stage import (
    Reporter,
    SilentReporter,
    StageResult,
    package_versions,
    run_stage,
)
from ..workspace.workspace import Workspace
from .dgc import keep_far_rows, require_halves, single_rows

PARTS, CANDIDATES = "parts", "candidates"


def calibrate_stage(
    workspace: Workspace,
    options: CalibrateOptions,
    reporter: Reporter,
    execution: Execution | None = None,
) -> StageResult:
    """Save samples, and collect ranges and squared sums of every site on them.

    With an `execution` in shards, at once in several processes or on a Ray cluster; what they
    make together is what one process makes.
    """
    check_execution(options, execution)
    model = Exported.open(workspace)
    if options.dgc:
        require_halves(model.manifest)
    source = open_calibration(model, options)
    if source.skipped:
        reporter.warn(skipped_text(source.skipped))
    digests = source.digests
    wanted = Manifest(
        stage="calibrate",
        inputs=model.manifest.as_inputs() | {f"data/{k}": v for k, v in digests.items()},
        options=msgspec.to_builtins(options)
        | {"images": list(source.names) if source.names else None}
        | ({"feeds": list(digests)} if options.feeds else {})
        | ({"classes": list(source.drawn)} if source.drawn else {}),
        versions=package_versions("onnxruntime", "pillow", "numpy"),
    )

    def work(folder: Path) -> dict[str, Any]:
        if execution is None:
            found = fill(Task(model, options, folder), source, reporter)
        else:
            found = spread(model, options, folder, execution, reporter)
        return (
            found
            | classes_of(folder, model)
            | {
                "images": list(source.names),
                "skipped": list(source.skipped),
                "samples": options.samples if options.dgc else source.count,
                "synthetic": source.synthetic,
            }
        )

    result = run_stage(workspace.folder("calibrate"), wanted, work)
    say_convergence(result, reporter)
    masked = facts(result.manifest, CalibrationFacts).masked
    if masked and not result.skipped:
        graphs = ", ".join(masked)
        reporter.say(f"calibration: NaN and infinity inside {graphs} reach no output; left out")
    return result


def classes_of(folder: Path, model: Exported) -> dict[str, Any]:
    """List the classes of a generator's samples in `folder`, for the manifest."""
    if model.kind != "generator":
        return {}
    _, spec = read_spec(model.folder)
    return {"classes": saved_classes(folder / "samples", spec.num_classes)}


def check_execution(options: CalibrateOptions, execution: Execution | None) -> None:
    """Raises RecipeError for what cannot be cut into shards, or already is one."""
    if execution is None:
        return
    if options.shard is not None:
        raise RecipeError(
            "a shard is one process's, an executor makes all", where="--shard", do="leave one out"
        )
    if options.dgc or options.samples_from:
        raise RecipeError(
            "the samples are chosen, or saved, already: an executor makes them",
            where="--executor",
            do="make candidates with it first, then choose with --samples-from and --dgc",
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One shard's samples and statistics, to be made in `folder`."""

    model: Exported
    options: CalibrateOptions
    folder: Path
    threads: int = 0


def fill(task: Task, source: SampleSource, reporter: Reporter) -> dict[str, Any]:
    """Save the samples of a task, then collect their statistics; what the manifest says of them."""
    from ..calibrate.calibration_run import CalibrationRun
    from ..calibrate.convergence import Growth, convergence
    from ..calibrate.statistics import Statistics, save_statistics

    export, options, threads = task.model.folder, task.options, task.threads
    samples = task.folder / "samples"
    samples.mkdir(parents=True)
    generates = task.model.kind == "generator"
    made = task.folder / CANDIDATES if options.dgc else samples
    made.mkdir(exist_ok=True)
    found = source.samples(reporter.progress)
    for k, sample in enumerate(single_rows(found) if options.dgc else found):
        save_sample(sample, made, k)
    files, names = sample_files(made), source.sample_names
    if len(names) == len(files):
        save_labels(made, {f.name: name for f, name in zip(files, names, strict=True)})
    results: dict[str, Any] = {}
    if options.dgc:
        results["dgc"] = keep_far_rows(export, made, samples, options, reporter)
        shutil.rmtree(made)
    sites, size = load_sites(export), options.batch_size
    # Of several graphs that are sampled apart the first tells: in others as many batches differ.
    growth = Growth(count_batches(sample_files(samples, sites.graphs[0]), size))
    run = CalibrationRun(export, samples, sites.graphs, size, reporter.progress, threads)
    if generates:
        statistics: Statistics = {}
        for graph in sites.graphs:
            statistics |= run.on(graph).input_ranges(
                sites.of_graph(graph), growth if graph == sites.graphs[0] else None
            )
    else:
        masked: list[str] = []
        statistics = run.channel_ranges(sites, growth, masked)
        results |= {"masked": masked} if masked else {}
    save_statistics(statistics, task.folder / STATISTICS, export=export_digest(task.model.manifest))
    return results | {"convergence": msgspec.to_builtins(convergence(growth))}


def fill_silently(task: Task) -> None:
    """`fill` in a process of its own."""
    silent = SilentReporter()
    source = open_calibration(task.model, task.options, task.threads)
    fill(task, source, silent)


def spread(
    model: Exported,
    options: CalibrateOptions,
    folder: Path,
    execution: Execution,
    reporter: Reporter,
) -> dict[str, Any]:
    """Make shards at once, and of them one set of samples and statistics in `folder`."""
    total = len(shard_of(options))
    count = min(execution.workers, total)
    tasks = [
        Task(
            replace(model, folder=model.folder.resolve()),
            msgspec.structs.replace(options, shard=f"{k + 1}/{count}"),
            folder.resolve() / PARTS / str(k),
            execution.threads,
        )
        for k in range(count)
    ]
    run_tasks(execution, fill_silently, tasks, lambda n: reporter.progress("shards", n, count))
    statistics = [task.folder / STATISTICS for task in tasks]
    found = combine_parts(statistics, sample_lists(tasks), folder)
    shutil.rmtree(folder / PARTS)
    return {"convergence": found}


def sample_lists(tasks: Sequence[Task]) -> list[list[Path]]:
    return [sample_files(task.folder / "samples") for task in tasks]
