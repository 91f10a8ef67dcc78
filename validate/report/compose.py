"""A report put together from what was measured and what the earlier stages tell."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...calibrate.facts import CalibrationFacts
from ...engines.facts import BUILT, EXECUTED, BuildFacts, EngineRow
from ...quantize.facts import QuantizationFacts
from ...recipe.recipe import Recipe
from ...workspace.facts import Exported, facts, model_name
from ...workspace.manifest import Manifest
from ...workspace.stage import package_versions
from ..download import GENERATOR_SIZE_NOTE, SIZE_NOTE, Download
from ..intervals.timing import percentiles, rates
from ..machine.start import Starts
from ..measure.candidates import Executed
from ..measure.measurement import Measurements
from ..measure.sizes import graph_bytes, running_bytes
from ..metrics.latency import read_cpu
from ..opinion.facts import Opinions
from .calibration import Calibration
from .gates import Gate, GateResult, evaluate, metric_of
from .schema import (
    HALF_PRECISION,
    SYNTHETIC,
    Data,
    Environment,
    Report,
    Sizes,
    metrics,
    sizes,
)
from .spread import busy_text, figure, figures


def finite_metrics(report: Report) -> dict[str, float]:
    """Return the metrics that are finite, by the names that gates read."""
    return {k: v for k, v in metrics(report).items() if v is not None and math.isfinite(v)}


def compose_report(
    model: Exported,
    name: str,
    samples: tuple[str, ...],
    measured: Measurements,
    folders: Mapping[str, Path],
    *,
    calibrated: CalibrationFacts,
    quantized: QuantizationFacts,
    engines: Mapping[str, Manifest],
    executed: Executed,
    download: Download | None = None,
    starts: Mapping[str, Starts] | None = None,
    stages: Iterable[Manifest] = (),
    recipe: Recipe | None = None,
) -> Report:
    """Return the report of the quantization `name`, with intervals and without gates.

    `samples` are the names of those that were measured, `folders` those of the candidates;
    `download` and `starts` were measured of the one that the report is about. `stages` are the
    manifests whose options the report has. `recipe` is that of the workspace's last run, which the
    report has if it is of this quantization and asked for the same.
    """
    builds = {key: facts(built, BuildFacts) for key, built in engines.items()}
    rows = [
        executed_row(row) if key == executed.key else row
        for key, built in builds.items()
        for row in built.engines
    ]
    faster = {key: built.faster for key, built in builds.items() if built.faster}
    stages = list(stages)
    options = {stage.stage: stage.options for stage in stages}
    read = {key: value for stage in stages for key, value in stage.inputs.items()}
    options |= {f"engines/{folder}": built.options for folder, built in engines.items()}
    report = Report(
        model=model_name(model.manifest),
        name=name,
        versions=package_versions("onnxruntime", "onnx", "torch", "tensorrt-rtx", "numpy")
        | {"python": platform.python_version()},
        cpu=read_cpu(),
        data=Data(
            validation=samples,
            calibration=(SYNTHETIC,) if calibrated.synthetic else calibrated.images,
            pictures=measured.picture_names,
            sampling=measured.sampling,
            classes=measured.classes,
        ),
        calibration=Calibration.of(calibrated),
        sizes=report_sizes(model, folders, quantized, download, peaks(starts or {})),
        accuracy=measured.accuracy,
        outputs=measured.outputs,
        generation=measured.generation,
        latency=measured.latency,
        percentiles=percentiles(measured.latency),
        rates=rates(measured.latency, "samples" if measured.outputs else "images"),
        starts=dict(starts or {}),
        machine=measured.machine,
        engines=tuple(rows),
        ran={} if executed.key is None else {executed.key: executed.provider},
        fallbacks=measured.fallbacks,
        sites=quantized.sites,
        options=msgspec.to_builtins(options),
        networks={name: read[name] for name in ("features", "lpips", "dists") if name in read},
        recipe=followed(recipe, name, options),
        environment=Environment(
            system=platform.system(), machine=platform.machine(), processors=os.cpu_count() or 1
        ),
        caches=quantized.caches or (),
        memory=measured.memory,
        kept_if_faster=faster or msgspec.UNSET,
    )
    return msgspec.structs.replace(report, figures=figures(report))


def judged(report: Report, gates: Iterable[Gate]) -> Report:
    """Return the report with what its gates found; one on a time says if the machine was busy."""
    found = evaluate(gates, metrics(report), lambda name, level: figure(report, name, level))
    results = (
        gate
        if gate.value is None
        else with_reason(gate, busy_text(report, metric_of(gate.expression)))
        for gate in found
    )
    return msgspec.structs.replace(report, gates=tuple(results))


def with_opinions(report: Report, found: Opinions) -> Report:
    """Return the report with what other ways of running say."""
    return msgspec.structs.replace(
        report,
        second_opinions=found.graphs,
        figure_opinions=found.figures,
        opinions_not_run=found.not_run,
    )


def with_reason(gate: GateResult, more: str) -> GateResult:
    """Return a gate's result that says something more; nothing else of it changes."""
    reason = "; ".join(text for text in (gate.reason, more) if text)
    return msgspec.structs.replace(gate, reason=reason or None)


def followed(
    recipe: Recipe | None, name: str, options: Mapping[str, Mapping[str, object]]
) -> dict[str, Any] | None:
    """Return a recipe, if the stages had its options: a stage may have been run by hand since."""
    if recipe is None or recipe.name != name:
        return None
    text = as_json(recipe)
    asked = {
        "quantize": text["quantize"],
        "validate": {key: text["validate"][key] for key in ("gates", "seed")},
    }
    for stage, wanted in asked.items():
        had = as_json(options.get(stage, {}))
        if any(key in had and had[key] != value for key, value in wanted.items()):
            return None
    return text


def as_json(value: object) -> dict[str, Any]:
    """Return a struct or mapping as JSON has it: a tuple, which equals no list, is one there."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found


def peaks(starts: Mapping[str, Starts]) -> dict[str, int]:
    """Return the most bytes of memory that each candidate took, as far as the system tells."""
    return {
        name: found.memory_bytes for name, found in starts.items() if found.memory_bytes is not None
    }


def executed_row(row: EngineRow) -> EngineRow:
    """Return the row of an engine that was built elsewhere, and was executed here."""
    return msgspec.structs.replace(row, status=EXECUTED) if row.status == BUILT else row


def report_sizes(
    model: Exported,
    folders: Mapping[str, Path],
    quantized: QuantizationFacts,
    download: Download | None = None,
    memory: dict[str, int] | None = None,
) -> Sizes:
    """Return the bytes of graphs and weights; a half-precision copy runs only as an engine."""
    generates = model.kind == "generator"
    runs = {name: folder for name, folder in folders.items() if name != HALF_PRECISION}
    fp32_bytes, candidate_bytes = running_bytes(model.folder, model.manifest, runs)
    return sizes(
        fp32_graph_bytes=graph_bytes(model.folder, generates),
        fp32_running_bytes=fp32_bytes,
        running_bytes=candidate_bytes,
        fp32_weight_bytes=quantized.fp32_bytes,
        packed_weight_bytes=quantized.packed_bytes,
        download=download,
        memory_bytes=memory,
        note=GENERATOR_SIZE_NOTE if generates else SIZE_NOTE,
    )
