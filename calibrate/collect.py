"""Samples of a source saved, and the statistics of their activations: at once or in shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..graph.sites import load_sites, split_graphs
from ..recipe.calibrate import CalibrateOptions
from ..runtime.folders import read_spec
from ..runtime.spec import DECODER
from ..samples.base import SampleSource
from ..samples.classes import saved_classes
from ..samples.files import (
    DECODER_SAMPLES,
    SAMPLES,
    GraphRun,
    Sample,
    count_batches,
    sample_files,
    save_labels,
    save_sample,
)
from ..samples.sources import open_calibration, shard_of
from ..workspace.facts import Exported, export_digest
from ..workspace.stage import Reporter, SilentReporter
from .calibration_run import CalibrationRun
from .convergence import Convergence, RangeGrowth, convergence
from .dgc_files import keep_far_rows, single_rows
from .executors import Execution, run_tasks
from .facts import CalibrationFacts, DgcSummary
from .shards import combine_parts, saved_files
from .statistics import STATISTICS, Statistics, save_statistics

PARTS, CANDIDATES = "parts", "candidates"


@dataclass(frozen=True, slots=True)
class Task:
    """Samples of a model, or a shard of them, and their statistics: to be made in `folder`."""

    model: Exported
    options: CalibrateOptions
    folder: Path
    threads: int = 0


def collect(task: Task, source: SampleSource, reporter: Reporter) -> CalibrationFacts:
    """Save the samples of a source and collect their statistics.

    Raises:
        CalibrationError: a non-finite value in what a graph computes for a sample, or with DGC no
            choice of rows.
    """
    dgc = save_samples(task, source, reporter)
    masked, grown = save_ranges(task, reporter)
    return facts_of(task, source, grown, masked=masked, dgc=dgc)


def collect_in_shards(
    task: Task, source: SampleSource, execution: Execution, reporter: Reporter
) -> CalibrationFacts:
    """Collect shards at once, and make one set of samples and statistics of them.

    `source` is that of all shards together; each worker opens its own.
    """
    total = len(shard_of(task.options))
    count = min(execution.workers, total)
    tasks = [
        Task(
            replace(task.model, folder=task.model.folder.resolve()),
            msgspec.structs.replace(task.options, shard=f"{k + 1}/{count}"),
            task.folder.resolve() / PARTS / str(k),
            execution.threads,
        )
        for k in range(count)
    ]
    run_tasks(execution, collect_silently, tasks, lambda n: reporter.progress("shards", n, count))
    statistics = [shard.folder / STATISTICS for shard in tasks]
    samples = [saved_files(shard.folder) for shard in tasks]
    grown = combine_parts(statistics, samples, task.folder)
    shutil.rmtree(task.folder / PARTS)
    return facts_of(task, source, grown)


def collect_silently(task: Task) -> None:
    """Do one shard in a process of its own."""
    source = open_calibration(task.model, task.options, task.threads)
    collect(task, source, SilentReporter())


def save_samples(task: Task, source: SampleSource, reporter: Reporter) -> DgcSummary | None:
    """Save the samples of a source, or the rows that DGC keeps of them."""
    target, dgc = task.folder / SAMPLES, task.options.dgc
    target.mkdir(parents=True)
    made = task.folder / CANDIDATES if dgc else target
    made.mkdir(exist_ok=True)
    found = with_decoder_apart(source.samples(reporter.progress), task.folder / DECODER_SAMPLES)
    for number, sample in enumerate(single_rows(found) if dgc else found):
        save_sample(sample, made, number)
    files, names = sample_files(made), source.sample_names
    if len(names) == len(files):
        save_labels(made, {f.name: name for f, name in zip(files, names, strict=True)})
    if not dgc:
        return None
    summary = keep_far_rows(task.model.folder, made, target, task.options, reporter)
    shutil.rmtree(made)
    return summary


def with_decoder_apart(samples: Iterable[Sample], folder: Path) -> Iterator[Sample]:
    """Yield samples, but for those of the image decoder, which a folder of their own gets."""
    number = 0
    for sample in samples:
        if isinstance(sample, GraphRun) and sample.graph == DECODER:
            folder.mkdir(exist_ok=True)
            save_sample(dict(sample.feeds), folder, number)
            number += 1
        else:
            yield sample


def save_ranges(task: Task, reporter: Reporter) -> tuple[tuple[str, ...], Convergence]:
    """Save the statistics of the samples in the task's folder.

    Returns the graphs inside which NaN or infinity was left out, and how the ranges grew.
    """
    export, samples = task.model.folder, task.folder / SAMPLES
    sites, size = load_sites(export), task.options.batch_size
    # Of several graphs that are sampled apart the first tells: in others as many batches differ.
    growth = RangeGrowth(count_batches(sample_files(samples, sites.graphs[0]), size))
    run = CalibrationRun(export, samples, sites.graphs, size, reporter.progress, task.threads)
    masked: list[str] = []
    if task.model.kind == "generator":
        statistics: Statistics = {}
        _, spec = read_spec(export)
        shared, apart = split_graphs(sites, spec.calibrated_graphs)
        for graph in shared.graphs:
            statistics |= run.on(graph).input_ranges(
                sites.of_graph(graph), growth if graph == sites.graphs[0] else None
            )
        decoded = task.folder / DECODER_SAMPLES
        if apart.graphs and decoded.is_dir():
            size = 1 if spec.static_batch else size
            decoding = replace(run, samples=decoded, graphs=apart.graphs, batch_size=size)
            statistics |= decoding.channel_ranges(apart)
    else:
        statistics = run.channel_ranges(sites, growth, masked)
    digest = export_digest(task.model.manifest)
    save_statistics(statistics, task.folder / STATISTICS, export=digest)
    return tuple(masked), convergence(growth)


def facts_of(
    task: Task,
    source: SampleSource,
    grown: Convergence,
    *,
    masked: tuple[str, ...] = (),
    dgc: DgcSummary | None = None,
) -> CalibrationFacts:
    """Return what the manifest says of samples that were saved in the task's folder."""
    classes: list[int] = []
    if task.model.kind == "generator":
        _, spec = read_spec(task.model.folder)
        classes = saved_classes(task.folder / SAMPLES, spec.num_classes)
    return CalibrationFacts(
        dgc=dgc,
        masked=masked,
        convergence=grown,
        classes=tuple(classes),
        images=source.names,
        skipped=source.skipped,
        samples=source.count if dgc is None else task.options.count,
        synthetic=source.synthetic,
    )
