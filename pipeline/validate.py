"""Stage 5: quantized against FP32 on held-out samples; report and gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..calibrate.facts import CalibrationFacts
from ..errors import AccuracyError
from ..extras import require_packages
from ..graph.sites import load_sites
from ..quantize.facts import QuantizationFacts
from ..recipe.validate import ValidateOptions
from ..samples.images import skipped_text
from ..validate.facts import ValidationFacts
from ..workspace.facts import Exported, facts
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.stage import (
    PreparedStage,
    Reporter,
    StageResult,
    package_versions,
    require_outputs,
)
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from ..validate.report.schema import Report


def validate_stage(
    workspace: Workspace, name: str, options: ValidateOptions, reporter: Reporter
) -> StageResult:
    """Measure accuracy, sizes and latency, write the report.

    Raises:
        AccuracyError: a gate failed; the report is written all the same.
    """
    from ..validate.report.schema import load_report

    result = prepare_validation(workspace, name, options, reporter).run()
    require_gates(load_report(result.folder), result)
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
    from ..validate.measure.kinds import leaked, open_measurement
    from ..validate.measure.second_opinion import second_opinions
    from ..validate.report.compose import compose_report, finite_metrics
    from ..validate.report.gates import evaluate, parse_gates
    from ..validate.report.render import write_report
    from ..validate.report.schema import FP32, METRIC_NAMES, QDQ, metrics
    from ..validate.report.spread import inconclusive_metrics

    gates = parse_gates(options.gates, METRIC_NAMES)
    model = Exported.open(workspace)
    measurement = open_measurement(model, options, calibrated_classes(workspace))
    skipped = [file for source in measurement.sources for file in source.skipped]
    if skipped:
        reporter.warn(skipped_text(skipped))
    _, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    calibrated = facts(workspace.manifest("calibrate", stage="calibrate"), CalibrationFacts)
    repeated = leaked(measurement.sources, calibrated.images)
    if repeated:
        reporter.warn(f"validated on calibration {measurement.noun}: {', '.join(repeated)}")
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
        folders = candidate_folders(workspace, name, engines, executed.key, reporter)
        measured = measurement.run(folders, reporter.progress, executed.device)
        for text in measured.fallbacks:
            reporter.warn(text)
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
        )
        if options.second_opinion:
            graphs = load_sites(workspace.folder("export")).graphs
            samples = workspace.folder("calibrate") / "samples"
            compared = {FP32: model.folder, QDQ: folders[QDQ]}
            opinions = second_opinions(compared, graphs, samples, folder)
            report = msgspec.structs.replace(report, second_opinions=opinions)
            for opinion in opinions:
                if not opinion.agrees:
                    reporter.warn(f"{opinion.graph}: Polygraphy's outputs are not those here")
        report = msgspec.structs.replace(report, gates=tuple(evaluate(gates, metrics(report))))
        write_report(folder, report, measured.pictures)
        return ValidationFacts(
            metrics=finite_metrics(report), inconclusive=inconclusive_metrics(report)
        )

    return PreparedStage(workspace.folder("validate", name), wanted, work)


def require_gates(report: Report, result: StageResult) -> None:
    """Raises AccuracyError for gates that failed; it says where the report lies."""
    if report.passed is not False:
        return
    from ..validate.report.gates import advice

    failed = [gate for gate in report.gates if not gate.passed]
    error = AccuracyError(
        "; ".join(f"gate {gate.expression} failed ({gate.reason})" for gate in failed),
        where=str(result.folder / "report.html"),
        do=advice(failed, report.sites),
    )
    error.stages = (result,)
    raise error


def calibrated_classes(workspace: Workspace) -> tuple[int, ...]:
    """Return the classes that a generator was calibrated on, as far as a manifest says it."""
    if not (workspace.folder("calibrate") / MANIFEST).is_file():
        return ()
    return facts(workspace.manifest("calibrate", stage="calibrate"), CalibrationFacts).classes
