"""Stage 2: images, arrays or generated tokens -> saved samples and streaming statistics."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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
from ..samples.classes import saved_classes
from ..samples.files import count_batches, sample_files, save_labels, save_sample
from ..samples.images import skipped_text
from ..samples.sources import Samples, open_samples, shard_of
from ..workspace.facts import export_digest, facts, kind_of
from ..workspace.manifest import Manifest
from ..workspace.stage import (
    Reporter,
    SilentReporter,
    StageResult,
    package_versions,
    require_outputs,
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
    export, manifest = require_outputs(workspace, "export", stage="export")
    if options.dgc:
        require_halves(manifest)
    source = open_samples(export, manifest, options, reporter)
    if source.skipped:
        reporter.warn(skipped_text(source.skipped))
    wanted = Manifest(
        stage="calibrate",
        inputs=manifest.as_inputs() | {f"data/{k}": v for k, v in source.digests.items()},
        options=msgspec.to_builtins(options)
        | {"images": list(source.names) if source.names else None}
        | ({"feeds": list(source.digests)} if options.feeds else {})
        | ({"classes": list(source.classes)} if source.classes else {}),
        versions=package_versions("onnxruntime", "pillow", "numpy"),
    )

    def work(folder: Path) -> dict[str, Any]:
        if execution is None:
            found = fill(Task(export, manifest, options, folder), source, reporter)
        else:
            found = spread(export, manifest, options, folder, execution, reporter)
        return (
            found
            | classes_of(folder, export, manifest)
            | {
                "images": list(source.names),
                "skipped": list(source.skipped),
                "samples": count_of(source, options),
                "synthetic": options.synthetic or source.synthetic,
            }
        )

    result = run_stage(workspace.folder("calibrate"), wanted, work)
    say_convergence(result, reporter)
    masked = facts(result.manifest, CalibrationFacts).masked
    if masked and not result.skipped:
        graphs = ", ".join(masked)
        reporter.say(f"calibration: NaN and infinity inside {graphs} reach no output; left out")
    return result


def classes_of(folder: Path, export: Path, exported: Manifest) -> dict[str, Any]:
    """List the classes of a generator's samples in `folder`, for the manifest."""
    if kind_of(exported) != "generator":
        return {}
    _, spec = read_spec(export)
    return {"classes": saved_classes(folder / "samples", spec.num_classes)}


def count_of(source: Samples, options: CalibrateOptions) -> int:
    """Pictures, crops or arrays; of saved samples their files."""
    if options.dgc:
        return options.samples
    return len(shard_of(options)) if source.count is None else source.count


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

    export: Path
    manifest: Manifest
    options: CalibrateOptions
    folder: Path
    threads: int = 0


def fill(task: Task, source: Samples, reporter: Reporter) -> dict[str, Any]:
    """Save the samples of a task, then collect their statistics; what the manifest says of them."""
    from ..calibrate.calibration_run import CalibrationRun
    from ..calibrate.convergence import RangeGrowth, convergence
    from ..calibrate.statistics import Statistics, save_statistics

    export, options, threads = task.export, task.options, task.threads
    samples = task.folder / "samples"
    samples.mkdir(parents=True)
    generates = kind_of(task.manifest) == "generator"
    made = task.folder / CANDIDATES if options.dgc else samples
    made.mkdir(exist_ok=True)
    for k, sample in enumerate(single_rows(source.samples) if options.dgc else source.samples):
        save_sample(sample, made, k)
        if not generates:
            reporter.progress("samples", k + 1, len(shard_of(options)))
    files = sample_files(made)
    if len(source.labels) == len(files):
        save_labels(made, {f.name: label for f, label in zip(files, source.labels, strict=True)})
    results: dict[str, Any] = {}
    if options.dgc:
        results["dgc"] = keep_far_rows(export, made, samples, options, reporter)
        shutil.rmtree(made)
    sites, size = load_sites(export), options.batch_size
    # Of several graphs that are sampled apart the first tells: in others as many batches differ.
    growth = RangeGrowth(count_batches(sample_files(samples, sites.graphs[0]), size))
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
    save_statistics(statistics, task.folder / STATISTICS, export=export_digest(task.manifest))
    return results | {"convergence": msgspec.to_builtins(convergence(growth))}


def fill_silently(task: Task) -> None:
    """`fill` in a process of its own."""
    silent = SilentReporter()
    source = open_samples(task.export, task.manifest, task.options, silent, task.threads)
    fill(task, source, silent)


def spread(
    export: Path,
    manifest: Manifest,
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
            export.resolve(),
            manifest,
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
