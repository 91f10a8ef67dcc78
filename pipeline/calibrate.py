"""Stage 2: images, arrays or generated tokens -> saved samples and streaming statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..calibrate.executors import Execution
from ..calibrate.facts import CalibrationFacts, MergedFacts
from ..errors import RecipeError
from ..recipe.calibrate import CalibrateOptions
from ..samples.images import skipped_text
from ..samples.sources import fewer_text, open_calibration
from ..workspace.facts import Exported, facts
from ..workspace.manifest import Manifest
from ..workspace.stage import (
    PreparedStage,
    Reporter,
    StageResult,
    in_stage,
    package_versions,
    run_stage,
)
from ..workspace.workspace import Workspace

LIBRARIES = ("onnxruntime", "pillow", "numpy")


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
    result = prepare_calibration(workspace, options, reporter, execution).run()
    say_results(result, reporter)
    return result


def prepare_calibration(
    workspace: Workspace,
    options: CalibrateOptions,
    reporter: Reporter,
    execution: Execution | None = None,
) -> PreparedStage:
    """Return what `calibrate_stage` would do."""
    from ..calibrate.collect import Task, collect, collect_in_shards
    from ..calibrate.dgc_files import require_conditions

    reporter = in_stage(reporter, "calibrate")
    check_execution(options, execution)
    model = Exported.open(workspace)
    if options.dgc:
        require_conditions(model)
    source = open_calibration(model, options)
    if source.skipped:
        reporter.warn(skipped_text(source.skipped))
    if fewer := fewer_text(options, source):
        reporter.warn(fewer)
    digests = source.digests
    wanted = Manifest(
        stage="calibrate",
        inputs=model.manifest.as_inputs() | {f"data/{k}": v for k, v in digests.items()},
        options=msgspec.to_builtins(options)
        | {"images": list(source.names) if source.names else None}
        | ({"feeds": list(digests)} if options.feeds else {})
        | ({"classes": list(source.drawn)} if source.drawn else {}),
        versions=package_versions(*LIBRARIES),
    )

    def work(folder: Path) -> CalibrationFacts:
        task = Task(model, options, folder)
        if execution is None:
            return collect(task, source, reporter)
        return collect_in_shards(task, source, execution, reporter)

    return PreparedStage(workspace.folder("calibrate"), wanted, work)


def merge_stage(workspace: Workspace, given: Sequence[Path], reporter: Reporter) -> StageResult:
    """Merge several calibrations into one: workspaces, calibrate folders or statistics files.

    Minima, maxima and counts are those of one run over all samples, sums to 1e-12 of them.

    Raises:
        CalibrationError: parts of another export or model, one that was changed, no samples, or
            fewer than two parts.
    """
    from ..calibrate.shards import batch_size_of, merge_parts, open_parts

    reporter = in_stage(reporter, "calibrate")
    exported = Exported.open(workspace).manifest
    parts = open_parts(given, exported, reporter)
    files = {f"part.{k}/{n}": d for k, part in enumerate(parts) for n, d in part.files.items()}
    wanted = Manifest(
        stage="calibrate",
        inputs=exported.as_inputs() | files,
        options={"merge": len(parts), "batch_size": batch_size_of(parts)},
        versions=package_versions(*LIBRARIES),
    )

    def work(folder: Path) -> MergedFacts:
        return merge_parts(parts, exported, folder)

    result = run_stage(workspace.folder("calibrate"), wanted, work)
    say_results(result, reporter)
    return result


def say_results(result: StageResult, reporter: Reporter) -> None:
    """Say whether the samples were enough and what was left out, unless nothing was done."""
    if result.skipped:
        return
    found = facts(result.manifest, CalibrationFacts)
    if found.convergence is not None:
        reporter.say(f"calibration: {found.convergence.text}")
    if found.masked:
        graphs = ", ".join(found.masked)
        reporter.say(f"calibration: NaN and infinity inside {graphs} reach no output; left out")


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
