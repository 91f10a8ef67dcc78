"""Compare static INT8 of DI8x8 at its real width with other tools: accuracy, speed, memory.

python -m arvg_trt.benchmarks.real_width --data ../shared/data --modelopt-python VENV/bin/python

The weights are random and well conditioned (`common.random_tokenizer`), since the published ones
may not be redistributed: figures compare tools on the same graph, images and seed, and say nothing
about picture quality. Every figure is measured in the run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from ...families.cosmos.config import CosmosConfig
from ...families.variants import find_model
from ...graph.sites import SiteMap, load_sites
from ...runtime.images import load_image, to_model
from ...runtime.sessions.open import fast_session
from ...samples.images import open_source
from ...validate.metrics.latency import Latency, interleaved, ratio
from ...workspace.files import decode_json
from ...workspace.manifest import Manifest
from ..common import (
    CALIBRATION_PHOTOGRAPHS,
    HELD_OUT_PHOTOGRAPHS,
    RESULTS,
    Measured,
    center_crops,
    data_folder,
    environment,
    random_tokenizer,
    run_measured,
)
from .accuracy import (
    EXECUTED,
    GRAPHS,
    Candidate,
    Images,
    both_accuracies,
    fp32_outputs,
    quantized_convolutions,
)
from .report import FP32, Findings

PEERS = Path(__file__).parent.parent / "peers.py"
ONLY_CONV = "Conv, our exclusions"
WORST_SITES = 5


class Bench:
    """Make a workspace by the command line, each stage in a fresh process."""

    def __init__(self, root: Path, model: str, seed: int, calibration: str) -> None:
        self.root = root
        self.model = model
        self.calibration = calibration
        self.workspace = root / "ws"
        config = find_model(model).config
        assert isinstance(config, CosmosConfig)
        checkpoint = root / "checkpoint"
        checkpoint.mkdir()
        save_file(random_tokenizer(config, seed).state_dict(), checkpoint / "model.safetensors")
        self.export = self.stage("export", model, "--checkpoint", str(checkpoint))

    def stage(self, name: str, *arguments: str) -> Measured:
        first, rest = (arguments[:1], arguments[1:]) if name == "export" else ((), arguments)
        click.echo(f"arvg-trt {name} {' '.join(rest)}", err=True)
        return run_measured(["arvg_trt", name, *first, str(self.workspace), *rest], self.root)

    def quantize(self, samples: int) -> dict[str, Measured]:
        """Calibrate on so many samples, quantize with the defaults."""
        return {
            "calibrate": self.stage(
                "calibrate", "--images", self.calibration, "--samples", str(samples)
            ),
            "quantize": self.stage("quantize", "--name", f"int8-{samples}"),
        }

    @property
    def sites(self) -> SiteMap:
        return load_sites(self.workspace / "export")

    def feeds(self) -> dict[str, Path]:
        """Write the calibration images, and the tokens FP32 makes of them, for other tools."""
        files = sorted((self.workspace / "calibrate" / "samples").glob("*.png"))
        images = [to_model(load_image(path)) for path in files]
        session = fast_session(self.workspace / "export" / "encoder.onnx")
        tokens = [session.run({"image": image}, ["indices"])["indices"] for image in images]
        found = {}
        for graph, rows in (("encoder", images), ("decoder", tokens)):
            found[graph] = self.root / f"{graph}_feeds.npy"
            np.save(found[graph], np.concatenate(rows))
        return found

    def peer(self, tool: str, python: str, only: str, exclude: bool) -> Candidate:
        """Let another tool quantize copies of both graphs on the same images.

        Copies, since a tool may write into its input: the FP32 reference must stay what it was.
        """
        folder = self.root / f"{tool}-{only or 'defaults'}"
        source = self.root / "source"
        shutil.copytree(self.workspace / "export", source)
        candidate = Candidate(f"{tool}, {ONLY_CONV if only else 'defaults'}", "", folder, folder)
        for graph, feeds in self.feeds().items():
            left_out = [s.node for s in self.sites.of_graph(graph) if s.excluded] * exclude
            arguments = [
                tool,
                str(source / f"{graph}.onnx"),
                str(feeds),
                str(folder / f"{graph}.onnx"),
                "--input-name",
                {"encoder": "image", "decoder": "indices"}[graph],
                *(["--only", only] if only else []),
                *(a for node in left_out for a in ("--exclude", node)),
            ]
            click.echo(f"{candidate.label}: {graph}", err=True)
            candidate.cost[graph] = run_measured([str(PEERS), *arguments], self.root, python)
            written = json.loads((folder / f"{graph}.json").read_text())
            candidate.version = written["version"]
        shutil.rmtree(source)
        return candidate


def has_module(python: str, name: str) -> bool:
    return subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0


@dataclass(frozen=True, slots=True)
class Timing:
    rounds: int
    warmup: int
    threads: int


def peers(bench: Bench, modelopt_python: str) -> list[Candidate]:
    """Return what the other tools make of the same graphs and images."""
    pythons = {"onnxruntime": sys.executable}
    if has_module(modelopt_python, "modelopt.onnx.quantization"):
        pythons["modelopt"] = modelopt_python
    else:
        click.echo("nvidia-modelopt is not installed: skipped", err=True)
    return [
        bench.peer(tool, python, only, exclude=bool(only))
        for tool, python in pythons.items()
        for only in ("", "Conv")
    ]


def timed(
    fp32: Candidate, candidates: Sequence[Candidate], image: NDArray[np.float32], options: Timing
) -> dict[str, Any]:
    """Time encoder, decoder and both, beside FP32, all in turn in one process."""
    codecs = {
        c.label: c.codec(reference=False, threads=options.threads) for c in (fp32, *candidates)
    }
    tokens, _ = codecs[fp32.label].encode(image)
    calls = {}
    for label, codec in codecs.items():
        calls[f"{label}: encoder"] = lambda codec=codec: codec.encode(image)
        calls[f"{label}: decoder"] = lambda codec=codec: codec.decode(tokens)
    click.echo(f"timing {options.rounds} rounds", err=True)
    latency = interleaved(calls, warmup=options.warmup, rounds=options.rounds)
    for label in codecs:
        halves = zip(*(latency[f"{label}: {graph}"].samples_ms for graph in GRAPHS), strict=True)
        latency[f"{label}: total"] = Latency.of([sum(pair) for pair in halves])
    return {
        label: {
            what: latency_row(latency[f"{label}: {what}"], latency[f"{fp32.label}: {what}"])
            for what in (*GRAPHS, "total")
        }
        for label in codecs
    }


def latency_row(each: Latency, reference: Latency) -> dict[str, Any]:
    speed = ratio(reference, each)
    return {
        "p50_ms": each.p50_ms,
        "p90_ms": each.p90_ms,
        "speed": speed.ratio,
        "speed_low": speed.low,
        "speed_high": speed.high,
        "verdict": speed.verdict,
    }


def worst_sites(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the sites whose quantized input is noisiest."""
    sites = [s for s in manifest.results["sites"] if s["activation_sqnr_db"] is not None]
    kept = sorted(sites, key=lambda s: float(s["activation_sqnr_db"]))[:WORST_SITES]
    return [{k: s[k] for k in ("name", "activation_sqnr_db", "weight_sqnr_db")} for s in kept]


def evaluation_images(folder: str | None, count: int) -> tuple[list[str], Images]:
    """Return centre crops of the last `count` files; calibration takes the first."""
    source = open_source(folder or HELD_OUT_PHOTOGRAPHS)
    chosen = range(max(0, len(source.files) - count), len(source.files))
    crops = list(center_crops(source, chosen))
    return [name for name, _ in crops], [to_model(crop) for _, crop in crops]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder with calib256.")
@click.option("--model", default="cosmos-di8x8", show_default=True, help="Whose widths.")
@click.option("--seed", default=0, show_default=True, help="Of the random weights.")
@click.option("--samples", default=8, show_default=True, help="Calibration images.")
@click.option("--many", default=128, show_default=True, help="And for memory; 0 to skip.")
@click.option("--images", default=8, show_default=True, help="Evaluation images.")
@click.option("--rounds", default=20, show_default=True, help="Timed rounds.")
@click.option("--threads", default=0, show_default=True, help="Of ONNX Runtime, 0 for all.")
@click.option("--modelopt-python", help="Python that has nvidia-modelopt[onnx].")
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
def main(
    data: Path | None,
    model: str,
    seed: int,
    samples: int,
    many: int,
    images: int,
    rounds: int,
    threads: int,
    modelopt_python: str | None,
    output: Path,
) -> None:
    """Compare static INT8 of a real-width tokenizer with other tools on ONNX Runtime."""
    folder = data_folder(data, "calib256")
    names, pictures = evaluation_images(folder, images)
    command = (
        f"python -m arvg_trt.benchmarks.real_width --model {model} --seed {seed} "
        f"--samples {samples} --many {many} --images {images} --rounds {rounds} --threads {threads}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), model, seed, folder or CALIBRATION_PHOTOGRAPHS)
        memory = {samples: bench.quantize(samples)}
        label = f"int8-{samples}"
        build = bench.stage("build", "--name", label, "--backend", "onnxruntime")
        quantized = bench.workspace / "quantize" / label
        manifest = decode_json(quantized / "manifest.json", Manifest, do="run again")
        engine = bench.workspace / "engines" / label / "onnxruntime"
        ours = Candidate("arvg-trt", manifest.versions["arvg-trt"], quantized, engine, ours=True)
        candidates = [ours, *peers(bench, modelopt_python or sys.executable)]
        export = bench.workspace / "export"
        fp32 = Candidate(FP32, "", export, export, ours=True)
        expected = fp32_outputs(fp32.codec(reference=True), pictures)
        accuracies = {c.label: both_accuracies(c, pictures, expected) for c in candidates}
        runnable = [c for c in candidates if accuracies[c.label][EXECUTED] is not None]
        timing = Timing(rounds=rounds, warmup=3, threads=threads)
        findings = Findings(
            command=command,
            model=model,
            seed=seed,
            samples=samples,
            images=names,
            convolutions={c.label: quantized_convolutions(c.qdq) for c in candidates},
            accuracy=accuracies,
            latency=timed(fp32, runnable, pictures[0], timing),
            rounds=rounds,
            export=bench.export,
            build=build,
            memory=memory,
            peers={c.label: c.cost for c in candidates[1:]},
            sites=worst_sites(manifest),
            environment=environment(threads)
            | {c.label.partition(",")[0]: c.version for c in candidates},
        )
        findings.write(output)
        if many:
            memory[many] = bench.quantize(many)
        click.echo(findings.write(output))
