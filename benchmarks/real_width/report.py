"""Write what the comparison at real width found, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import Measured, environment_line, markdown_table, source_commit, write_results

FP32 = "FP32"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Compare with FP32 in the reference session; the decoder is fed the FP32 tokens."""

    latent_db: float
    tokens_equal: float
    decoder_db: float


@dataclass(frozen=True, slots=True)
class Findings:
    """Hold everything that a run measured; `memory` is by number of calibration samples."""

    command: str
    model: str
    seed: int
    samples: int
    images: Sequence[str]
    convolutions: Mapping[str, str]
    accuracy: Mapping[str, Mapping[str, Accuracy | None]]
    latency: Mapping[str, Mapping[str, Mapping[str, Any]]]
    rounds: int
    export: Measured
    build: Measured
    memory: Mapping[int, Mapping[str, Measured]]
    peers: Mapping[str, Mapping[str, Measured]]
    sites: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]

    def write(self, folder: Path) -> str:
        """Write both result files; return the page."""
        ours = {f"arvg-trt, {n} samples": steps for n, steps in self.memory.items()}
        text = REPORT.format(
            model=self.model,
            seed=self.seed,
            samples=self.samples,
            images=len(self.images),
            rounds=self.rounds,
            accuracy=accuracy_table(self.accuracy, self.convolutions),
            latency=latency_table(self.latency),
            cost=cost_table(
                {"arvg-trt": {"export": self.export, "build": self.build}, **ours, **self.peers}
            ),
            memory=memory_line(self.memory),
            sites=sites_table(self.sites),
            command=self.command,
            commit=source_commit(),
            environment=environment_line(self.environment),
        )
        write_results("real_width", folder, text, asdict(self))
        return text


def accuracy_table(
    rows: Mapping[str, Mapping[str, Accuracy | None]], convolutions: Mapping[str, str]
) -> str:
    def cells(found: Accuracy | None) -> list[str]:
        if found is None:
            return ["ONNX Runtime refuses the graph", "-", "-"]
        return [
            f"{found.latent_db:.2f}",
            f"{found.tokens_equal:.1%}",
            f"{found.decoder_db:.2f}",
        ]

    return markdown_table(
        [
            "quantization",
            "INT8 convs",
            "session",
            "latent SQNR, dB",
            "tokens equal",
            "decoder SQNR, dB",
        ],
        [
            [label, convolutions[label], kind, *cells(a)]
            for label, kinds in rows.items()
            for kind, a in kinds.items()
        ],
    )


def latency_table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    def cell(label: str, row: Mapping[str, Any]) -> str:
        if label == FP32:
            return f"{row['p50_ms']:.0f} ms"
        low, high = row["speed_low"], row["speed_high"]
        return f"{row['p50_ms']:.0f} ms, {row['speed']:.2f}x ({low:.2f} to {high:.2f})"

    return markdown_table(
        ["graphs", "encoder", "decoder", "total"],
        [
            [label, *(cell(label, row[k]) for k in ("encoder", "decoder", "total"))]
            for label, row in rows.items()
        ],
    )


def cost_table(rows: Mapping[str, Mapping[str, Measured]]) -> str:
    return markdown_table(
        ["process", "peak memory", "wall time"],
        [
            [f"{what}: {step}", f"{m.peak_mb:.0f} MB", f"{m.seconds:.1f} s"]
            for what, steps in rows.items()
            for step, m in steps.items()
        ],
    )


def memory_line(costs: Mapping[int, Mapping[str, Measured]]) -> str:
    """Say how the peak over both stages grows with samples."""
    peaks = {n: max(m.peak_mb for m in steps.values()) for n, steps in costs.items()}
    few, many = min(peaks), max(peaks)
    if few == many:
        return f"Peak over both stages: {peaks[few]:.0f} MB at {few} samples."
    return (
        f"Peak over both stages: {peaks[few]:.0f} MB at {few} samples, {peaks[many]:.0f} MB at "
        f"{many}: ratio {peaks[many] / peaks[few]:.3f}."
    )


def sites_table(sites: Sequence[Mapping[str, Any]]) -> str:
    return markdown_table(
        ["site", "input SQNR, dB", "weight SQNR, dB"],
        [
            [s["name"], f"{s['activation_sqnr_db']:.1f}", f"{s['weight_sqnr_db']:.1f}"]
            for s in sites
        ],
    )


REPORT = """\
# Static INT8 at real width

`{model}` with random well-conditioned weights (seed {seed}), 256x256, batch 1. All tools see the
same FP32 graphs and the same {samples} calibration images; {images} other images evaluate. Random
weights compare tools, they say nothing about picture quality.

- arvg-trt: defaults (W8A8, per-channel weights, searched smoothing, shifted ranges, attention
  projections with weights alone in INT8).
- onnxruntime, defaults: `quant_pre_process`, then `quantize_static` (QDQ, INT8 x INT8, per-channel,
  MinMax): every kind of node it knows, the first and last convolutions too.
- modelopt, defaults: `modelopt.onnx.quantization.quantize` in int8 (entropy), float side FP32.
- Conv, our exclusions: the same tool on the convolutions alone, without those that arvg-trt leaves
  out (first and last of each half, the Haar transforms); onnxruntime then with UINT8 activations,
  since its default session refuses to load its own INT8 graph of this kind.

## Accuracy against FP32

"Reference" is the Q/DQ graph without any rewrite, "as executed" what the latency is of: arvg-trt's
ONNX Runtime engine, and the others' graphs in ONNX Runtime's default session.
The decoder is fed the FP32 tokens. "INT8 convs" have both input and weight behind a
DequantizeLinear in the Q/DQ graph; weight-only ones have a float input, so they compute in float
and their accuracy is that of quantized weights alone.

{accuracy}

## Latency on ONNX Runtime

Median of {rounds} rounds, all graphs in turn in one process, and speed over FP32: median
(quartiles) of the ratios by round.

{latency}

## Time and memory

Each row is a fresh process, imports included; peak is VmHWM.

{cost}

{memory}

## Noisiest inputs of arvg-trt

{sites}

Measured by `{command}` (with `--data`) at commit {commit} on {environment}
"""
