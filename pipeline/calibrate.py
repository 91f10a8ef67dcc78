"""Stage 2: images, arrays or generated tokens -> saved samples and streaming statistics."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..artifacts import Manifest, Workspace
from ..errors import RecipeError
from ..recipe import CalibrateOptions
from ..runtime.feeds import sample_files, save_sample
from .calibration_sources import Samples, open_samples, shard_of
from .common import (
    Reporter,
    StageResult,
    export_digest,
    load_sites,
    package_versions,
    require_outputs,
    run_stage,
)
from .executors import Execution, SilentReporter, run_tasks
from .generated_samples import FULL, is_generator
from .merging import STATISTICS, combine_parts

PARTS = "parts"


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
    if execution is not None and options.shard is not None:
        raise RecipeError(
            "a shard is one process's, an executor makes all", where="--shard", do="leave one out"
        )
    export, manifest = require_outputs(workspace, "export", stage="export")
    source = open_samples(export, manifest, options, reporter)
    if source.skipped:
        reporter.warn(
            f"skipped {len(source.skipped)} unreadable files: {', '.join(source.skipped[:5])}"
        )
    wanted = Manifest(
        stage="calibrate",
        inputs={**manifest.outputs, **source.digests},
        options=msgspec.to_builtins(options)
        | {"images": list(source.names) if source.names else None}
        | ({"feeds": list(source.digests)} if options.feeds else {}),
        versions=package_versions("onnxruntime", "pillow", "numpy"),
    )

    def work(folder: Path) -> dict[str, Any]:
        if execution is None:
            fill(Task(export, manifest, options, folder), source, reporter)
        else:
            spread(export, manifest, options, folder, execution, reporter)
        return {
            "images": list(source.names),
            "skipped": list(source.skipped),
            "samples": len(shard_of(options)),
            "synthetic": options.synthetic,
        }

    return run_stage(workspace.folder("calibrate"), wanted, work)


@dataclass(frozen=True, slots=True)
class Task:
    """One shard's samples and statistics, to be made in `folder`."""

    export: Path
    manifest: Manifest
    options: CalibrateOptions
    folder: Path
    threads: int = 0


def fill(task: Task, source: Samples, reporter: Reporter) -> None:
    """Save the samples of a task, then collect their statistics."""
    from ..calibrate.passes import collect_ranges
    from ..calibrate.statistics import save_statistics
    from ..calibrate.view_passes import collect_full_ranges

    export, options, threads = task.export, task.options, task.threads
    samples = task.folder / "samples"
    samples.mkdir(parents=True)
    generates = is_generator(task.manifest)
    for k, sample in enumerate(source.samples):
        save_sample(sample, samples, k)
        if not generates:
            reporter.progress("samples", k + 1, len(shard_of(options)))
    sites, size, progress = load_sites(export), options.batch_size, reporter.progress
    if generates:
        statistics = collect_full_ranges(
            export,
            samples,
            sites.of_graph(FULL),
            batch_size=size,
            progress=progress,
            threads=threads,
        )
    else:
        statistics = collect_ranges(
            export, samples, sites, batch_size=size, progress=progress, threads=threads
        )
    save_statistics(statistics, task.folder / STATISTICS, export=export_digest(task.manifest))


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
) -> None:
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
    combine_parts([task.folder / STATISTICS for task in tasks], sample_lists(tasks), folder)
    shutil.rmtree(folder / PARTS)


def sample_lists(tasks: Sequence[Task]) -> list[list[Path]]:
    return [sample_files(task.folder / "samples") for task in tasks]
