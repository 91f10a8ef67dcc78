"""Stage 5: quantized against FP32 on held-out samples; report and gates."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..calibrate.facts import CalibrationFacts
from ..engines.facts import BuildFacts
from ..errors import AccuracyError, CalibrationError, WorkspaceError
from ..packages import require_packages
from ..quantize.facts import QuantizationFacts
from ..recipe.options import ValidateOptions
from ..samples.images import skipped_text
from ..validate.measure.data import HeldOut, HeldOutFeeds, HeldOutImages, validation_source
from ..validate.measure.sizes import graph_bytes, running_bytes
from ..workspace.facts import FP16, facts, kind_of
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.stage import Reporter, StageResult, package_versions, require_outputs, run_stage
from ..workspace.verify import verify
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from ..validate.report.calibrated import Calibration


def validate_stage(
    workspace: Workspace, name: str, options: ValidateOptions, reporter: Reporter
) -> StageResult:
    """Measure accuracy, sizes and latency, write the report.

    Raises:
        AccuracyError: a gate failed; the report is written all the same.
    """
    from ..validate.report.gates import parse_gates
    from ..validate.report.schema import METRIC_NAMES, load_report

    require_packages("report")
    gates = parse_gates(options.gates, METRIC_NAMES)
    if (workspace.folder("export") / MANIFEST).is_file():
        require_outputs(workspace, "export", stage="export")  # before its description is read
    held_out = open_held_out(workspace, options)
    if held_out.skipped:
        reporter.warn(skipped_text(held_out.skipped))
    _, exported = require_outputs(workspace, "export", stage="export")
    _, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    calibrated = workspace.manifest("calibrate", stage="calibrate")
    leaked = held_out.leaked(calibrated)
    if leaked:
        reporter.warn(f"validated on calibration {held_out.noun}: {', '.join(leaked)}")
    engines = {} if options.skip_engine else engine_manifests(workspace, name)
    wanted = Manifest(
        stage="validate",
        inputs={
            **{f"export/{k}": v for k, v in exported.outputs.items()},
            **{f"quantize/{k}": v for k, v in manifest.outputs.items()},
            **{f"engines/{f}/{k}": v for f, m in engines.items() for k, v in m.outputs.items()},
            **held_out.digests,
        },
        options=msgspec.to_builtins(options)
        | {"images": list(held_out.names)}
        | ({"feeds": list(held_out.digests)} if options.feeds else {}),
        versions=package_versions("onnxruntime", "numpy", "scikit-image"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from ..validate.report.gates import evaluate
        from ..validate.report.render import write_report
        from ..validate.report.schema import metrics

        report, pictures = measure_all(
            workspace, name, held_out, exported, manifest, calibrated, engines, reporter
        )
        judged = tuple(evaluate(gates, metrics(report)))
        report = msgspec.structs.replace(report, gates=judged)
        write_report(folder, report, pictures)
        return {
            "metrics": {
                k: v for k, v in metrics(report).items() if v is not None and np.isfinite(v)
            }
        }

    result = run_stage(workspace.folder("validate", name), wanted, work)
    report = load_report(result.folder / "report.json")
    if report.passed is False:
        failed = [g for g in report.gates if not g.passed]
        error = AccuracyError(
            "; ".join(f"gate {g.expression} failed ({g.reason})" for g in failed),
            where=str(result.folder / "report.html"),
            do="open the report, then change the recipe or the gate",
        )
        error.made = {"stages": [result]}
        raise error
    return result


def engine_manifests(workspace: Workspace, name: str) -> dict[str, Manifest]:
    """Manifests of every engine folder of this quantization, and of the FP16 engines beside it.

    Raises:
        WorkspaceError: an engine is not what was built, or is one of another quantization.
    """
    found = {}
    for each in (name, FP16):
        for folder in sorted((workspace.root / "engines" / each).glob("[!.]*/")):
            try:
                found[f"{each}/{folder.name}"] = verify(folder)
            except WorkspaceError as error:
                do = f"{error.do}, or leave engines out with --skip-engine"
                raise WorkspaceError(error.what, where=error.where, do=do) from error
    return found


def open_held_out(workspace: Workspace, options: ValidateOptions) -> HeldOut:
    """What to validate on: images, feeds for a user's own graphs, pictures of a generator's own.

    Raises:
        CalibrationError: none given, or they cannot be used.
    """
    path = workspace.folder("export") / MANIFEST
    if path.is_file():
        exported = workspace.manifest("export", stage="export")
        kind = kind_of(exported)
        if kind != "generator":
            require_no_classes(options)
        if kind == "custom":
            return HeldOutFeeds.open(exported, options)
        if kind == "generator":
            from ..validate.measure.data_generator import HeldOutGenerator

            return HeldOutGenerator.open(
                path.parent, exported, options, calibrated_classes(workspace)
            )
    source = validation_source(options)
    _, exported = require_outputs(workspace, "export", stage="export")
    return HeldOutImages.open(source, exported, options)


def calibrated_classes(workspace: Workspace) -> tuple[int, ...]:
    """Classes of a generator that calibration has seen, as far as a manifest says it."""
    if not (workspace.folder("calibrate") / MANIFEST).is_file():
        return ()
    return facts(workspace.manifest("calibrate", stage="calibrate"), CalibrationFacts).classes


def require_no_classes(options: ValidateOptions) -> None:
    """Raises CalibrationError for what only a generator takes."""
    for name in ("labels", "features"):
        if getattr(options, name) is not None:
            raise CalibrationError(
                f"only a generator takes {name}", where=f"--{name}", do="leave it out"
            )


def measure_all(
    workspace: Workspace,
    name: str,
    held_out: HeldOut,
    exported: Manifest,
    quantized: Manifest,
    calibrated: Manifest,
    engines: Mapping[str, Manifest],
    reporter: Reporter,
) -> tuple[Any, list[Any]]:
    """The report without gates, and the pictures it shows."""
    from ..validate.metrics.latency import read_cpu
    from ..validate.report.schema import (
        GENERATOR_SIZE_NOTE,
        SIZE_NOTE,
        SYNTHETIC,
        Data,
        Report,
        sizes,
    )

    export = workspace.folder("export")
    folders = {"qdq": workspace.folder("quantize", name)}
    own = [key for key in engines if key.startswith(f"{name}/") and "onnxruntime" not in key]
    copies = [key for key in own if engines[key].options.get("half") != "bfloat16"]
    for key in sorted({*own} - {*copies}):
        reporter.warn(
            f"{key} is not compared: ONNX Runtime does not compute in bfloat16 on the CPU"
        )
    if copies:
        # The same graph in every folder: targets differ in what is compiled from it.
        folders["twin"] = workspace.folder("engines", *copies[0].split("/"))
    if f"{name}/onnxruntime" in engines:
        folders["engine"] = workspace.folder("engines", name, "onnxruntime")
    measured = held_out.measure(export, folders, reporter.progress)
    rows = [row for built in engines.values() for row in facts(built, BuildFacts).engines]
    of_sites = facts(quantized, QuantizationFacts)
    of_samples = facts(calibrated, CalibrationFacts)
    generates = kind_of(exported) == "generator"
    runs = {name: folder for name, folder in folders.items() if name != "twin"}
    fp32_bytes, candidate_bytes = running_bytes(export, exported, runs)
    report = Report(
        model=exported.options["model"],
        name=name,
        versions=package_versions("onnxruntime", "onnx", "torch", "tensorrt-rtx", "numpy")
        | {"python": platform.python_version()},
        cpu=read_cpu(),
        data=Data(
            validation=held_out.names,
            calibration=(SYNTHETIC,) if of_samples.synthetic else of_samples.images,
            pictures=measured.picture_names,
            sampling=measured.sampling,
            classes=measured.classes,
        ),
        calibration=calibration_of(of_samples),
        sizes=sizes(
            fp32_graph_bytes=graph_bytes(export, generates),
            fp32_running_bytes=fp32_bytes,
            running_bytes=candidate_bytes,
            fp32_weight_bytes=of_sites.fp32_bytes,
            packed_weight_bytes=of_sites.packed_bytes,
            note=GENERATOR_SIZE_NOTE if generates else SIZE_NOTE,
        ),
        accuracy=measured.accuracy,
        outputs=measured.outputs,
        generation=measured.generation,
        latency=measured.latency,
        engines=tuple(rows),
        sites=of_sites.sites,
    )
    return report, measured.pictures


def calibration_of(found: CalibrationFacts) -> Calibration:
    """Return what a report says of the samples."""
    from ..validate.report.calibrated import Calibration, DgcRows

    grown, chosen = found.convergence, found.dgc
    return Calibration(
        samples=found.samples,
        enough=None if grown is None else grown.enough,
        settled=0 if grown is None else grown.settled,
        inputs=0 if grown is None else len(grown.sites),
        share=None if grown is None else grown.share,
        classes=found.classes,
        dgc=None
        if chosen is None
        else DgcRows(
            candidates=chosen.candidates,
            kept=chosen.kept,
            conditional_share=chosen.conditional_share,
            select=chosen.select,
        ),
    )
