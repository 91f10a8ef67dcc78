"""Time FP32, FP16, INT8 and FP8 on the GPU of this machine; this program has never run on one.

python -m arvg_trt.benchmarks.gpu --prepare DIR     once, in as long as it takes
python -m arvg_trt.benchmarks.gpu DIR               measures what DIR holds, in under 10 minutes

Models and sizes are those of the paper's figures: Cosmos DI8x8, VAR-d16 and RAR-B, batches of 1 and
100, 64, 128 and 256 tokens. A VAR computes that many at once, a RAR one behind that many; the
tokenizer takes images of 256x256 pixels, which are 1,024. `--checkpoint MODEL=PATH` takes real
weights; else those of the official sizes are random, which changes no shape, and accuracy then says
only that an engine computes what it should. Memory is what the driver counts more than before the
session was opened. Whatever is not reached within the time is listed as not measured.

TensorRT for RTX takes no H100 or H200: where a format is not built, its Q/DQ graphs are measured by
CUDA, which computes them in float, and the column of providers tells.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from ..errors import ArvgError, BundleError
from ..families.variants import find_model
from ..numerics.noise import SignalAndNoise
from ..pipeline.build import build_stage
from ..pipeline.calibrate import calibrate_stage
from ..pipeline.export import export_any
from ..pipeline.quantize import quantize_stage
from ..recipe.build import BuildOptions
from ..recipe.calibrate import CalibrateOptions
from ..recipe.quantize import QuantizeOptions
from ..runtime.devices import this_device
from ..runtime.folders import opener
from ..runtime.sessions.open import fast_session
from ..runtime.sessions.session import Session
from ..validate.metrics.latency import Latency
from ..workspace.stage import Reporter
from ..workspace.workspace import Workspace
from .common import (
    CALIBRATION_PHOTOGRAPHS,
    RESULTS,
    QuietReporter,
    environment,
    markdown_table,
    random_tokenizer,
    write_results,
)
from .random_checkpoint import write_checkpoint

DEVICE = "cuda:0"
TIMED = {"cosmos-di8x8": ("encoder", "decoder"), "var-d16": ("step",), "rar-b": ("step",)}
TOKENIZER, CACHED = "cosmos-di8x8", "rar-b"
FORMATS = ("fp32", "fp16", "int8", "fp8")
BATCHES, TOKENS = (1, 100), (64, 128, 256)
SIDE = 32  # tokens on a side of the tokenizer's image
SECONDS = 570.0
WARMUP, ROUNDS, MOST_SECONDS = 5, 50, 4.0  # of one case


@dataclass(frozen=True, slots=True)
class Case:
    """Name one measurement: a graph of a model in a format, for so many images and tokens."""

    model: str
    graph: str
    format: str
    batch: int
    tokens: int


def cases() -> Iterator[Case]:
    """Yield all measurements; the small ones of every format come first."""
    for batch, (model, graphs) in itertools.product(BATCHES, TIMED.items()):
        sizes = (SIDE**2,) if model == TOKENIZER else TOKENS
        for tokens, graph, form in itertools.product(sizes, graphs, FORMATS):
            yield Case(model, graph, form, batch, tokens)


def prepare(root: Path, checkpoints: Mapping[str, str]) -> None:
    """Export each model, quantize it in INT8 and FP8, and build engines for this GPU if it can."""
    reporter = QuietReporter()
    for model in TIMED:
        entry = find_model(model)
        checkpoint = Path(checkpoints.get(model, root / f"{model}-weights"))
        if model not in checkpoints and not checkpoint.is_dir():
            if entry.family == "cosmos":
                checkpoint.mkdir(parents=True)
                weights = random_tokenizer(entry.config, seed=0).state_dict()  # type: ignore[arg-type]
                save_file(weights, checkpoint / "model.safetensors")
            else:
                write_checkpoint(checkpoint, entry, seed=0)
        with Workspace(root / model) as opened:
            click.echo(f"{model}: export, calibrate", err=True)
            export_any(opened, model, str(checkpoint), CALIBRATION_PHOTOGRAPHS, (), reporter)
            images = CALIBRATION_PHOTOGRAPHS if entry.family == "cosmos" else None
            calibrate_stage(opened, CalibrateOptions(images=images, samples=4), reporter)
            most = max(BATCHES) if entry.family == "cosmos" else max(BATCHES) // 2  # rows: twice
            build = BuildOptions(
                backend="tensorrt_rtx", targets=(this_device().gpus[0].sm,), max_batch=most
            )
            for name, method in (("int8", "per_channel"), ("fp8", "fp8")):
                click.echo(f"{model}: {name}", err=True)
                options = QuantizeOptions(
                    quantize_method=method,  # type: ignore[arg-type]
                    encoder_bits=8,
                    decoder_bits=8,
                    weight_bits=8,
                )
                quantize_stage(opened, name, options, reporter)
                build_or_say(opened, name, build, reporter)
            build_or_say(opened, "fp16", build, reporter)


def build_or_say(opened: Workspace, name: str, build: BuildOptions, reporter: Reporter) -> None:
    """Build the engines of one format, or say why there are none."""
    try:
        build_stage(opened, name, build, reporter)
    except ArvgError as error:
        click.echo(f"{opened.root.name}: {name} is not built: {error}", err=True)


def open_case(root: Path, case: Case) -> Session:
    """Open a case's graph on the GPU: FP32 as a graph, the others as engines where they are built.

    Raises:
        BundleError: it was not prepared, or it does not run here.
    """
    made = root / case.model
    folder = made / "export"
    if case.format != "fp32":
        engines = sorted((made / "engines" / case.format).glob("rtx-*"))
        folder = engines[0] if engines else made / "quantize" / case.format
    if not folder.is_dir():
        what = f"there is neither an engine nor a graph in {case.format}"
        raise BundleError(what, where=str(made), do="--prepare, which says why")
    return opener(folder, fast_session, DEVICE)(folder / f"{case.graph}.onnx", 0)


def feeds_of(session: Session, case: Case) -> dict[str, NDArray[Any]]:
    """Return random feeds: rows are images, a RAR's step has the tokens in its cache."""
    cached = case.model == CACHED
    axes = {
        **dict.fromkeys(("rows", "batch"), case.batch),
        **{"past": case.tokens if cached else 0, "n": 1 if cached else case.tokens},
        **dict.fromkeys(("h", "w"), SIDE),
    }

    def size_of(axis: object) -> int:
        if isinstance(axis, int):
            return axis
        factor, _, name = str(axis).rpartition("*")  # "8*h" of an image
        return int(factor or 1) * axes[name]

    random = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for name in session.inputs:
        shape = [size_of(axis) for axis in session.shapes[name]]
        kind = np.dtype(session.types[name])
        if name == "position_ids":
            feeds[name] = np.arange(shape[0], dtype=kind) + axes["past"]
        elif kind.kind == "f":
            feeds[name] = random.normal(0, 0.1, shape).astype(kind)
        else:
            feeds[name] = random.integers(0, 10, shape).astype(kind)
    return feeds


def used_bytes() -> int:
    """Return the bytes that are taken on the GPU, as the driver counts."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) << 20


def measure(root: Path, case: Case, wanted: dict[Case, NDArray[Any]]) -> dict[str, Any]:
    """Return latency, memory and the SQNR of a case's first output against FP32's."""
    before = used_bytes()
    session = open_case(root, case)
    feeds = feeds_of(session, case)
    name = session.outputs[0]
    kept = {key: session.to_device(value) for key, value in feeds.items()}
    run = partial(session.run_on_device, kept, host=(name,))
    out = run()[name].numpy().astype(np.float64)
    samples: list[float] = []
    stop = time.perf_counter() + MOST_SECONDS
    for k in range(WARMUP + ROUNDS):
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        if k >= WARMUP:
            samples.append(1000 * (end - start))
        if end > stop and samples:
            break
    error = SignalAndNoise()
    reference = Case(case.model, case.graph, "fp32", case.batch, case.tokens)
    exact = wanted.setdefault(reference, out) if case.format == "fp32" else wanted.get(reference)
    if exact is not None:
        error.add(exact, out)
    times = Latency.of(samples)
    return {
        "p50_ms": times.p50_ms,
        "p90_ms": times.p90_ms,
        "runs": times.n,
        "memory_bytes": used_bytes() - before,
        "sqnr_db": None if exact is None else error.decibels(),
        "provider": session.device,
    }


def measure_all(root: Path, out: Path) -> None:
    """Measure every case while there is time, and write `gpu.md` and `gpu.json`."""
    stop = time.perf_counter() + SECONDS
    rows: list[dict[str, Any]] = []
    wanted: dict[Case, NDArray[Any]] = {}
    for case in cases():
        found: dict[str, Any] = {"problem": "not measured: out of time"}
        if time.perf_counter() < stop:
            try:
                found = measure(root, case, wanted)
            except ArvgError as error:
                found = {"problem": str(error)}
        rows.append({name: getattr(case, name) for name in Case.__slots__} | found)
        click.echo(rows[-1], err=True)
    gpu = this_device().gpus[0]
    header = (*Case.__slots__, "p50_ms", "p90_ms", "memory_bytes", "sqnr_db", "provider", "problem")
    table = markdown_table(header, [[row.get(name, "") for name in header] for row in rows])
    facts = environment(0) | {"gpu": gpu.name, "sm": gpu.sm, "driver": this_device().driver}
    text = f"# On {gpu.name} ({gpu.sm})\n\n{table}\n"
    write_results("gpu", out, text, {"environment": facts, "rows": rows})


def require_gpu() -> None:
    """Raise BundleError on a machine without a GPU: nothing is measured there."""
    machine = this_device()
    if not machine.gpus:
        what = f"has not run: {machine.driver_problem}"
        raise BundleError(what, where="benchmarks.gpu", do="run it on a machine with an NVIDIA GPU")


@click.command()
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prepare", "prepares", is_flag=True, help="Export, quantize and build into DIR.")
@click.option("--checkpoint", multiple=True, metavar="MODEL=PATH", help="Real weights of a model.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(root: Path, prepares: bool, checkpoint: tuple[str, ...], out: Path) -> None:
    """Measure the models of DIR on this machine's GPU, or prepare them there."""
    try:
        require_gpu()
        if prepares:
            prepare(root, dict(text.split("=", 1) for text in checkpoint))
        else:
            measure_all(root, out)
    except ArvgError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
