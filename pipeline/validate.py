"""Stage 5: quantized against FP32 on held-out samples; report and gates."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..calibrate.facts import CalibrationFacts
from ..errors import AccuracyError, InconclusiveError, RecipeError
from ..extras import require_packages
from ..quantize.facts import QuantizationFacts
from ..recipe.file import load_recipe
from ..recipe.recipe import Recipe
from ..recipe.validate import ValidateOptions
from ..validate.facts import ValidationFacts
from ..workspace.facts import Exported, facts
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.stage import (
    PreparedStage,
    Reporter,
    StageResult,
    in_stage,
    package_versions,
    require_outputs,
)
from ..workspace.workspace import RECIPE_FILE, Workspace

if TYPE_CHECKING:
    from ..validate.report.schema import Report


def validate_stage(
    workspace: Workspace, name: str, options: ValidateOptions, reporter: Reporter
) -> StageResult:
    """Measure accuracy, sizes and latency, write the report.

    Raises:
        AccuracyError: a gate failed; the report is written all the same.
        InconclusiveError: none failed, and the samples do not decide one.
    """
    from ..validate.report.files import load_report

    result = prepare_validation(workspace, name, options, reporter).run()
    require_gates(load_report(result.folder), result, options)
    return result


def prepare_validation(
    workspace: Workspace, name: str, options: ValidateOptions, reporter: Reporter
) -> PreparedStage:
    """Return what `validate_stage` would do."""
    require_packages("report")
    from ..validate.measure.candidates import (
        candidate_folders,
        engine_manifests,
        executed_engine,
    )
    from ..validate.measure.kinds import doubts, open_measurement
    from ..validate.measure.ranges import unlike_calibration
    from ..validate.measure.sizes import measure_shipped
    from ..validate.metric_names import parse_gates_of
    from ..validate.opinion.checkpoint import find_checkpoint
    from ..validate.opinion.run import require_polygraphy, second_opinions, warnings_of
    from ..validate.opinion.tables import opinions_line
    from ..validate.remarks import remarks
    from ..validate.report.compose import compose_report, finite_metrics, judged, with_opinions
    from ..validate.report.notes import engine_gap
    from ..validate.report.render import write_report
    from ..validate.report.schema import FP32, QDQ
    from ..validate.report.spread import inconclusive_metrics

    reporter = in_stage(reporter, "validate")
    if options.second_opinion:
        require_polygraphy()
    model = Exported.open(workspace)
    measures_starts = bool(options.rounds and options.starts)
    gates = parse_gates_of(model.kind, options.gates, starts=measures_starts)
    measurement = open_measurement(model, options, calibrated_classes(workspace))
    _, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    calibration = workspace.manifest("calibrate", stage="calibrate")
    calibrated = facts(calibration, CalibrationFacts)
    for text in doubts(measurement, calibrated.images):
        reporter.warn(text)
    saved = workspace.folder("calibrate") / "samples"
    engines = {} if options.skip_engine else engine_manifests(workspace, name)
    executed = executed_engine(workspace, name, engines, options.device, reporter)
    digests = measurement.digests
    wanted = Manifest(
        stage="validate",
        inputs={
            **{f"export/{k}": v for k, v in model.manifest.outputs.items()},
            **{f"quantize/{k}": v for k, v in manifest.outputs.items()},
            **{f"engines/{f}/{k}": v for f, m in engines.items() for k, v in m.outputs.items()},
            **digests,
        },
        options=msgspec.to_builtins(options)
        | {"device": executed.device}
        | {"images": list(measurement.names)}
        | ({"feeds": list(digests)} if options.feeds else {}),
        versions=package_versions("onnxruntime", "numpy", "scikit-image"),
    )

    def work(folder: Path) -> ValidationFacts:
        start = time.monotonic()
        folders = candidate_folders(workspace, name, engines, executed.key, reporter)
        measured = measurement.run(folders, reporter.progress, executed.device)
        for text in (*unlike_calibration(measurement.sources, saved), *measured.fallbacks):
            reporter.warn(text)
        download, starts = measure_shipped(
            model, folders, options, executed.device, measured.sample, reporter
        )
        report = compose_report(
            model,
            name,
            measurement.names,
            measured,
            folders,
            calibrated=calibrated,
            quantized=facts(manifest, QuantizationFacts),
            engines=engines,
            executed=executed,
            download=download,
            starts=starts,
            stages=(model.manifest, calibration, manifest, wanted),
            recipe=last_recipe(workspace.root),
        )
        if options.second_opinion:
            found = find_checkpoint(model.manifest, last_recipe(workspace.root))
            compared = {FP32: model.folder, QDQ: folders[QDQ]}
            opinions = second_opinions(compared, measured.feeds, folder, found, options.threads)
            report = with_opinions(report, opinions)
            for text in warnings_of(opinions):
                reporter.warn(text)
        report = judged(report, gates)
        write_report(folder, report, measured.pictures, time.monotonic() - start)
        return ValidationFacts(
            metrics=finite_metrics(report),
            inconclusive=inconclusive_metrics(report),
            download=download.line,
            busy=report.busy,
            opinions=opinions_line(report),
            gap=engine_gap(report),
            remarks=remarks(report),
        )

    return PreparedStage(workspace.folder("validate", name), wanted, work)


def require_gates(report: Report, result: StageResult, options: ValidateOptions) -> None:
    """Raise AccuracyError for gates that failed, else InconclusiveError for those left open.

    It says where the report lies.
    """
    if report.verdict in (None, "passed"):
        return
    from ..validate.advice import advice

    found = [gate for gate in report.gates if gate.verdict == report.verdict]
    what = "failed" if report.verdict == "failed" else "is inconclusive"
    kind = AccuracyError if report.verdict == "failed" else InconclusiveError
    error = kind(
        "; ".join(f"gate {gate.expression} {what} ({gate.reason})" for gate in found),
        where=str(result.folder / "report.html"),
        do=advice(found, report.sites, result.folder, options)
        if report.verdict == "failed"
        else "validate on more samples, or in more --rounds for a time; or change the gate",
    )
    error.stages = (result,)
    raise error


def calibrated_classes(workspace: Workspace) -> tuple[int, ...]:
    """Return the classes that a generator was calibrated on, as far as a manifest says it."""
    if not (workspace.folder("calibrate") / MANIFEST).is_file():
        return ()
    return facts(workspace.manifest("calibrate", stage="calibrate"), CalibrationFacts).classes


def last_recipe(root: Path) -> Recipe | None:
    """Return the recipe of a workspace's last `run`; None without one that can be read."""
    with contextlib.suppress(RecipeError):  # the report can do without
        return load_recipe(root / RECIPE_FILE) if (root / RECIPE_FILE).is_file() else None
    return None
