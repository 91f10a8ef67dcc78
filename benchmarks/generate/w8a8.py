"""Time generation with W8A8 graphs at VAR's real shapes, beside FP32 graphs and eager PyTorch.

python -m arvg_trt.benchmarks.generate.w8a8 --workdir DIR [--threads 2] [--rounds 5]

A checkpoint of the published sizes with random weights goes through the stages as a user's would:
export, calibrate, quantize, build for ONNX Runtime. Then all loops run in one process, interleaved:
first the tokens alone, then to the pixels, there also with the decoder in INT8, which is quantized
as a graph of a user's own. Weights change no shape; accuracy figures of random weights say only
that the engine computes what it should. With `--workspace` what was made before is taken up again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from ...families.variants import find_model
from ...pipeline.build import build_stage
from ...pipeline.calibrate import calibrate_stage
from ...pipeline.export import export_any
from ...pipeline.quantize import quantize_stage
from ...recipe.build import BuildOptions
from ...recipe.calibrate import CalibrateOptions
from ...recipe.quantize import QuantizeOptions
from ...runtime.generator import Generator
from ...runtime.sessions.open import fast_session, open_session
from ...runtime.sessions.session import Array, Session, SessionObserver
from ...samples.files import load_sample, sample_files
from ...validate.metrics.latency import Latency, interleaved, ratio
from ...workspace.workspace import Workspace
from ..common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    markdown_table,
    write_results,
)
from ..random_checkpoint import checkpoint_of, weights_of
from .generate import IMAGES, eager_loop
from .node_profile import largest_step

NAME = "w8a8"
EAGER, FP32, W8A8 = "eager PyTorch, FP32", "ONNX Runtime, FP32", "ONNX Runtime, W8A8"
WHOLE = f"{W8A8}, and the decoder"
LEAST = {EAGER: 2.0, FP32: 1.8}
KINDS_SHOWN = 12


def make(workspace: Path, checkpoint: Path, model: str, samples: int) -> None:
    """Run every stage up to the engine, and the decoder's; what is up to date is skipped."""
    reporter = QuietReporter()
    with Workspace(workspace) as opened:
        click.echo("exporting", err=True)
        export_any(opened, model, str(checkpoint), IMAGES, (), reporter)
        click.echo("calibrating", err=True)
        calibrate_stage(opened, CalibrateOptions(samples=samples, batch_size=1), reporter)
        click.echo("quantizing", err=True)
        quantize_stage(opened, NAME, QuantizeOptions(weight_bits=8, smoothing="gps"), reporter)
        click.echo("building", err=True)
        build_stage(opened, NAME, BuildOptions(), reporter)
    feeds = workspace / "latents.npz"
    np.savez(feeds, latent=latents(workspace / "export", list(range(samples))))
    with Workspace(workspace / "decoder") as opened:
        click.echo("the decoder in INT8", err=True)
        export_any(opened, "onnx", None, "", [workspace / "export" / "decoder.onnx"], reporter)
        calibrate_stage(opened, CalibrateOptions(feeds=str(feeds), samples=samples), reporter)
        quantize_stage(opened, NAME, QuantizeOptions(weight_bits=8), reporter)
        build_stage(opened, NAME, BuildOptions(), reporter)


class Caught(SessionObserver):
    """Stand in for a decoder: keep what it is fed, and give black pictures at once."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(open_session(path, optimized=False, threads=threads, mapped=True))
        self.fed: list[Array] = []

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        (latent,) = feeds.values()
        self.fed.append(latent)
        side = latent.shape[-1] * 16
        return {"image": np.full((len(latent), 3, side, side), -1, np.float32)}


def tokens_only(folder: Path, threads: int) -> tuple[Generator, list[Caught]]:
    """Open a generator whose decoder does nothing."""
    caught: list[Caught] = []

    def session(path: Path, threads: int) -> Session:
        if path.stem != "decoder":
            return fast_session(path, threads)
        caught.append(Caught(path, threads))
        return caught[-1]

    return Generator.open(folder, session=session, threads=threads), caught


def latents(export: Path, labels: Sequence[int]) -> NDArray[np.generic]:
    """Return what the decoder is fed for images of `labels`."""
    generator, caught = tokens_only(export, 0)
    generator.generate(labels, batch_size=1)
    return np.concatenate(caught[0].fed)


def with_decoder(decoder: Path) -> Callable[[Path, int], Session]:
    """Return what opens sessions of an engine folder, but another decoder."""

    def session(path: Path, threads: int) -> Session:
        return fast_session(decoder if path.stem == "decoder" else path, threads)

    return session


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Compare the teacher-forced graph of the engine with FP32 on calibration samples."""

    logits_db: float
    top1: float


def accuracy(workspace: Path, engine: Path, threads: int) -> Accuracy:
    logits = []
    for folder in (workspace / "export", engine):
        session = fast_session(folder / "full.onnx", threads)
        files = sample_files(workspace / "calibrate" / "samples")
        runs = [session.run(load_sample(path, session.inputs))["logits"] for path in files]
        logits.append(np.concatenate(runs).astype(np.float64))
    wanted, found = logits
    noise = float(np.square(found - wanted).sum())
    same = float(np.mean(wanted.argmax(axis=-1) == found.argmax(axis=-1)))
    return Accuracy(float(10 * np.log10(np.square(wanted).sum() / noise)), same)


def speed_table(times: Mapping[str, Latency]) -> str:
    """Return a table of the loops, and how much faster than each the W8A8 ones are."""
    ours = [name for name in times if name.startswith(W8A8)]
    header = ("loop", "median ms", "least ms", *(f"{name} is faster by" for name in ours))
    rows = []
    for name, t in times.items():
        gains = [ratio(t, times[our]) for our in ours]
        shown = [f"{g.ratio:.2f} ({g.low:.2f} to {g.high:.2f})" for g in gains]
        rows.append((name, f"{t.p50_ms:.0f}", f"{t.min_ms:.0f}", *shown))
    return markdown_table(header, rows)


@click.command()
@click.option("--model", default="var-d16", show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path), required=True, help="Needs 6 GB.")
@click.option("--workspace", type=click.Path(path_type=Path), help="Keep it, or use one made here.")
@click.option("--samples", default=2, show_default=True, help="For calibration.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    model: str,
    workdir: Path,
    workspace: Path | None,
    samples: int,
    threads: int,
    rounds: int,
    out: Path,
) -> None:
    """Measure and write `generate_w8a8_SIZE.md` and `.json`."""
    torch.set_num_threads(threads)
    root = workspace or Path(tempfile.mkdtemp(dir=workdir))
    try:
        checkpoint = checkpoint_of(find_model(model), root / "checkpoint")
        make(root / "ws", checkpoint, model, samples)
        text, values = measure(root / "ws", checkpoint, model, threads, rounds)
    finally:
        if workspace is None:
            shutil.rmtree(root)
    write_results(f"generate_w8a8_{model.rpartition('-')[2]}", out, text + "\n", values)
    click.echo(text)


def measure(
    workspace: Path, checkpoint: Path, model: str, threads: int, rounds: int
) -> tuple[str, dict[str, Any]]:
    """Return the text and the values of the result files."""
    engine = workspace / "engines" / NAME / "onnxruntime"
    decoder = workspace / "decoder" / "engines" / NAME / "onnxruntime" / "decoder.onnx"
    click.echo("accuracy", err=True)
    found = accuracy(workspace, engine, threads)
    tokens = {FP32: workspace / "export", W8A8: engine}
    generators = {name: tokens_only(folder, threads)[0] for name, folder in tokens.items()}
    labels = [207 % generators[FP32].spec.num_classes]
    eager = eager_loop(checkpoint, model, generators[FP32].spec.defaults)
    made = generators[FP32].generate(labels, greedy=True).tokens
    equal = float(np.mean(made == eager.tokens(labels, greedy=True)[1].numpy()))
    click.echo("timing tokens", err=True)
    alone = interleaved(
        {EAGER: partial(eager.tokens, labels)}
        | {name: partial(g.generate, labels) for name, g in generators.items()},
        warmup=1,
        rounds=rounds,
    )
    kinds = largest_step(engine / "step.onnx", generators[W8A8].spec, threads)
    del generators
    pictures = {name: Generator.open(folder, threads=threads) for name, folder in tokens.items()}
    session = with_decoder(decoder)
    pictures[WHOLE] = Generator.open(engine, session=session, threads=threads)
    click.echo("timing pictures", err=True)
    whole = interleaved(
        {EAGER: partial(eager.generate, labels)}
        | {name: partial(g.generate, labels) for name, g in pictures.items()},
        warmup=1,
        rounds=rounds,
    )
    machine = environment(threads)
    total = sum(kinds.values())
    wanted = ", ".join(f"{least}x {name}" for name, least in LEAST.items())
    text = "\n\n".join(
        (
            f"# Generating with {model} at W8A8: an image under guidance, "
            f"{weights_of(find_model(model))}",
            environment_line(machine),
            f"Tokens alone, without the image decoder, {rounds} rounds interleaved (wanted: "
            f"{wanted}):",
            speed_table(alone),
            "From the label to the pixels:",
            speed_table(whole),
            f"{equal:.2%} of greedy tokens of eager PyTorch and ONNX Runtime equal at FP32. The "
            f"engine as executed, teacher-forced beside FP32: logits {found.logits_db:.1f} dB, "
            f"{found.top1:.2%} of the likeliest tokens equal.",
            f"Where the largest step spends its {total:.0f} ms, by kind of node:",
            markdown_table(
                ("node", "ms", "of the step"),
                [
                    (kind, f"{spent:.1f}", f"{spent / total:.1%}")
                    for kind, spent in list(kinds.items())[:KINDS_SHOWN]
                ],
            ),
        )
    )
    values = {
        "environment": machine,
        "tokens": {name: msgspec.to_builtins(t) for name, t in alone.items()},
        "pictures": {name: msgspec.to_builtins(t) for name, t in whole.items()},
        "greedy_tokens_equal_at_fp32": equal,
        "logits_db": found.logits_db,
        "top1": found.top1,
        "step_ms_by_node": kinds,
    }
    return text, values


if __name__ == "__main__":
    main()
