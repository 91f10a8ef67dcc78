"""Stage 5: quantized against FP32 on held-out images; report and gates."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..artifacts import MANIFEST, Manifest, Workspace, decode_json
from ..errors import AccuracyError, CalibrationError
from ..recipe import ValidateOptions
from ..runtime.image_sources import ImageSource, open_source
from ..runtime.images import center_crop, to_model
from ..runtime.tokenizer import ImageTokenizer
from .calibrate import image_digests
from .common import Reporter, StageResult, package_versions, require_outputs, run_stage

KEPT_PICTURES = 4


def validate_stage(
    workspace: Workspace, name: str, options: ValidateOptions, reporter: Reporter
) -> StageResult:
    """Measure accuracy, sizes and latency, write the report.

    Raises:
        AccuracyError: a gate failed; the report is written all the same.
    """
    from ..validate.gates import parse_gates
    from ..validate.report import METRIC_NAMES, load_report

    gates = parse_gates(options.gates, METRIC_NAMES)
    source = validation_source(options)
    if source.skipped:
        reporter.warn(
            f"skipped {len(source.skipped)} unreadable files: {', '.join(source.skipped)}"
        )
    _, exported = require_outputs(workspace, "export", stage="export")
    stride = exported.results["tokenizer"]["stride"]
    if options.size % stride:
        raise CalibrationError(
            f"validation size {options.size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    _, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    calibrated = workspace.manifest("calibrate", stage="calibrate")
    leaked = sorted(set(source.names) & set(calibrated.results["images"]))
    if leaked:
        reporter.warn(f"validated on calibration images: {', '.join(leaked)}")
    engines = engine_manifests(workspace, name)
    wanted = Manifest(
        stage="validate",
        inputs={
            **{f"export/{k}": v for k, v in exported.outputs.items()},
            **{f"quantize/{k}": v for k, v in manifest.outputs.items()},
            **{f"engines/{f}/{k}": v for f, m in engines.items() for k, v in m.outputs.items()},
            **image_digests(source),
        },
        options=msgspec.to_builtins(options) | {"images": list(source.names)},
        versions=package_versions("onnxruntime", "numpy", "scikit-image"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from ..validate.gates import evaluate
        from ..validate.render import write_report
        from ..validate.report import metrics

        report, pictures = measure_all(
            workspace, name, options, source, exported, manifest, calibrated, engines, reporter
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
        raise AccuracyError(
            "; ".join(f"gate {g.expression} failed ({g.reason})" for g in failed),
            where=str(result.folder / "report.html"),
            do="open the report, then change the recipe or the gate",
        )
    return result


def validation_source(options: ValidateOptions) -> ImageSource:
    if options.images is None:
        raise CalibrationError("no validation images", do="give --images DIR")
    return open_source(options.images)


def engine_manifests(workspace: Workspace, name: str) -> dict[str, Manifest]:
    """Manifests of every engine folder of this quantization, and of the FP16 engines beside it."""
    found = {}
    for each in (name, "fp16"):
        root = workspace.root / "engines" / each
        for path in sorted(root.glob(f"[!.]*/{MANIFEST}")):
            key = f"{each}/{path.parent.name}"
            found[key] = decode_json(path, Manifest, do="run `arvg-trt build` again")
    return found


def measure_all(
    workspace: Workspace,
    name: str,
    options: ValidateOptions,
    source: ImageSource,
    exported: Manifest,
    quantized: Manifest,
    calibrated: Manifest,
    engines: Mapping[str, Manifest],
    reporter: Reporter,
) -> tuple[Any, list[Any]]:
    """The report without gates, and the pictures it shows."""
    from ..validate.accuracy import measure
    from ..validate.latency import read_cpu
    from ..validate.report import SYNTHETIC, Data, EngineRow, Report, SiteRow, sizes

    export = workspace.folder("export")
    tokenizer = exported.results["tokenizer"]
    codecs = {"qdq": ImageTokenizer.reference(workspace.folder("quantize", name))}
    twins = [key for key in engines if key.startswith(f"{name}/") and "onnxruntime" not in key]
    if twins:
        # The same graph in every folder: targets differ in what is compiled from it.
        codecs["twin"] = ImageTokenizer.reference(workspace.folder("engines", *twins[0].split("/")))
    engine_folder = workspace.folder("engines", name, "onnxruntime")
    if f"{name}/onnxruntime" in engines:
        codecs["engine"] = ImageTokenizer.open(engine_folder, threads=options.threads)
    total = len(source.files)
    accuracy, pictures = measure(
        validation_images(source, options),
        ImageTokenizer.reference(export),
        codecs,
        codebook_size=tokenizer["codebook_size"],
        keep_pictures=KEPT_PICTURES,
        progress=lambda done: reporter.progress("validating images", done, total),
    )
    latency: dict[Any, Any] = {}
    if "engine" in codecs and options.rounds:
        latency = measure_latency(
            ImageTokenizer.open(export, threads=options.threads),
            codecs["engine"],
            to_model(next(validation_images(source, options))[1]),
            options,
        )
    rows = [
        msgspec.convert(row, EngineRow)
        for manifest in engines.values()
        for row in manifest.results["engines"]
    ]
    synthetic = calibrated.results["synthetic"]
    report = Report(
        model=exported.options["model"],
        name=name,
        versions=package_versions("onnxruntime", "onnx", "torch", "tensorrt-rtx", "numpy")
        | {"python": platform.python_version()},
        cpu=read_cpu(),
        data=Data(
            validation=source.names,
            calibration=(SYNTHETIC,) if synthetic else tuple(calibrated.results["images"]),
        ),
        sizes=sizes(
            fp32_graph_bytes={
                g: (export / f"{g}.onnx").stat().st_size
                + (export / f"{g}.onnx.data").stat().st_size
                for g in ("encoder", "decoder")
            },
            fp32_weight_bytes=quantized.results["fp32_bytes"],
            packed_weight_bytes=quantized.results["packed_bytes"],
        ),
        accuracy=accuracy,
        latency=latency,
        engines=tuple(rows),
        sites=tuple(
            SiteRow(
                name=s["name"],
                graph=s["graph"],
                weight=s["weight"],
                activation=s["activation"],
                weight_sqnr_db=s["weight_sqnr_db"],
                reason=s["reason"],
            )
            for s in quantized.results["sites"]
        ),
    )
    return report, pictures


def validation_images(
    source: ImageSource, options: ValidateOptions
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """A centre crop of each image, by file name."""
    for k, name in enumerate(source.names):
        yield name, center_crop(source.load(k), options.size)


def measure_latency(
    fp32: ImageTokenizer,
    engine: ImageTokenizer,
    image: NDArray[np.float32],
    options: ValidateOptions,
) -> dict[str, Any]:
    """Encoder, decoder and both, FP32 and engine in turn."""
    from ..validate.latency import interleaved, ratio
    from ..validate.report import LatencyRow

    tokens, latent = fp32.encode(image)
    fed = latent if tokens is None else tokens
    runs = {
        "encoder": {
            t: (lambda c=c: c.encode(image)) for t, c in (("fp32", fp32), ("engine", engine))
        },
        "decoder": {
            t: (lambda c=c: c.decode(fed)) for t, c in (("fp32", fp32), ("engine", engine))
        },
        "total": {
            t: (lambda c=c: (c.encode(image), c.decode(fed)))
            for t, c in (("fp32", fp32), ("engine", engine))
        },
    }
    rows = {}
    for what, pair in runs.items():
        timed = interleaved(pair, warmup=options.warmup, rounds=options.rounds)
        rows[what] = LatencyRow(
            fp32=timed["fp32"],
            engine=timed["engine"],
            speed=ratio(timed["fp32"], timed["engine"]),
            shape=tuple(image.shape),
            batch=int(image.shape[0]),
            threads=options.threads,
        )
    return rows
