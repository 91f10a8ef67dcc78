"""The shipped minis in workspaces, and how well they foresee tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arvg_trt.runtime.generator import Generated
from arvg_trt.runtime.images import center_crop
from arvg_trt.runtime.sessions.open import fast_session, reference_session
from arvg_trt.samples.files import load_sample, sample_files
from arvg_trt.samples.images import open_source

LABELS = np.arange(10)
SIDES = (1, 2, 3, 4, 5, 6, 8)
TIMES = (100, 300, 500, 700) * 3  # of MAR's diffusion
KNOWN = 2
Tokens = NDArray[np.int32]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def var_shown(tokens: Tokens, export: Path) -> dict[str, NDArray[np.float32]]:
    """The full graph's input: after each scale but the last, the sum so far, shrunk by means."""
    count, size = len(tokens), SIDES[-1]
    f_hat = np.zeros((count, 16, size, size), np.float32)
    parts, start = [], 0
    for scale, side in enumerate(SIDES[:-1]):
        update = fast_session(export / f"update.{scale}.onnx")
        ids = tokens[:, start : start + side * side].astype(np.int64)
        f_hat = update.run({"tokens": ids, "f_hat": f_hat})["f_hat_next"]
        parts.append(area(f_hat, SIDES[scale + 1]))
        start += side * side
    return {"features": np.concatenate(parts, axis=1).astype(np.float32)}


def area(image: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Means of adaptive windows, [N, C, H, H] -> [N, side * side, C]."""
    size = image.shape[-1]
    windows = [(k * size // side, math.ceil((k + 1) * size / side)) for k in range(side)]
    cells = [
        image[:, :, a:b, c:d].astype(np.float64).mean(axis=(2, 3))
        for a, b in windows
        for c, d in windows
    ]
    return np.stack(cells, axis=1)


def rar_shown(tokens: Tokens, _: Path) -> dict[str, NDArray[np.int64]]:
    return {"tokens": tokens[:, :-1].astype(np.int64)}


def par_shown(tokens: Tokens, _: Path) -> dict[str, NDArray[np.int64]]:
    return {"tokens": tokens[:, :-4].astype(np.int64)}


# What a family's full graph is shown of the tokens, beside the labels.
SHOWN: dict[str, Callable[[Tokens, Path], dict]] = {
    "var": var_shown,
    "rar": rar_shown,
    "par": par_shown,
    "llamagen": rar_shown,
}


def cross_entropy(family: str, export: Path, labels: Labels, tokens: Tokens) -> Floats:
    """Teacher-forced, in nats a token."""
    full = fast_session(export / "full.onnx")
    shown = SHOWN[family](tokens, export)
    logits = full.run({"labels": labels, **shown})["logits"].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[..., None].astype(np.int64), axis=-1)[..., 0]
    entropy: Floats = np.log(np.exp(logits).sum(axis=-1)) - chosen
    return entropy.mean(axis=1)


def kept(time: int) -> float:
    """The share of a token's variance that is left at a time of the diffusion, but at its end."""
    return math.cos(((time + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2


def noise_error(export: Path, labels: Labels, latents: NDArray[np.float32]) -> Floats:
    """Mean squared error of the noise of the tokens [N, c, h, w], given KNOWN of them.

    The fewer are known, the more the label tells.
    """
    count, channels = latents.shape[:2]
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(64), (count, 1)), axis=1)
    raster = latents.reshape(count, channels, 64).transpose(0, 2, 1)
    tokens = np.take_along_axis(raster, order[..., None], axis=1)
    feeds = {"labels": labels, "tokens": tokens[:, :KNOWN], "position_ids": order}
    told = fast_session(export / "pass.onnx").run(feeds, ["condition"])["condition"]
    denoise = fast_session(export / "denoise.onnx")
    unknown, errors = tokens[:, KNOWN:].reshape(-1, channels), []
    for time in TIMES:
        noise = rng.standard_normal(unknown.shape).astype(np.float32)
        noisy = (
            np.float32(kept(time) ** 0.5) * unknown + np.float32((1 - kept(time)) ** 0.5) * noise
        )
        feeds = {"x": noisy, "time": np.array([time]), "condition": told.reshape(len(noisy), -1)}
        errors.append(np.square(denoise.run(feeds, ["noise"])["noise"] - noise))
    found: Floats = np.mean(errors, axis=0).reshape(count, -1).mean(axis=1)
    return found


def run_decibels(
    export: Path, folder: Path, samples: Path, graphs: Sequence[str]
) -> dict[str, float]:
    """SQNR in dB of every output over all runs in `samples`, by `GRAPH/OUTPUT`; equal ones: inf."""
    found: dict[str, float] = {}
    for graph in graphs:
        files = sample_files(samples, graph)
        assert files, graph
        wanted, made = (reference_session(path / f"{graph}.onnx") for path in (export, folder))
        signal, noise = dict.fromkeys(wanted.outputs, 0.0), dict.fromkeys(wanted.outputs, 0.0)
        for path in files:
            feeds = load_sample(path, wanted.inputs)
            outputs = made.run(feeds)
            for name, values in wanted.run(feeds).items():
                wide = values.astype(np.float64)
                signal[name] += float(np.square(wide).sum())
                noise[name] += float(np.square(outputs[name].astype(np.float64) - wide).sum())
        for name in wanted.outputs:
            ratio = signal[name] / noise[name] if noise[name] else math.inf
            found[f"{graph}/{name}"] = 10 * math.log10(ratio)
    return found


@dataclass(frozen=True)
class Mini:
    """A family, its mini's workspace and a picture of each class that it made."""

    family: str
    workspace: Path
    made: Generated

    @property
    def losses(self) -> Callable[[Labels, NDArray], Floats]:
        """How badly it foresees tokens under labels [N], by picture [N]."""
        export = self.workspace / "export"
        if self.family == "mar":
            return partial(noise_error, export)
        return partial(cross_entropy, self.family, export)

    @property
    def chance(self) -> float:
        """The loss of who knows no more than that codes are even, or numbers normal."""
        return float(np.mean([kept(t) for t in TIMES])) if self.family == "mar" else math.log(512)


@dataclass(frozen=True)
class Quantized:
    """A mini, a workspace of it with statistics, and the folder of its Q/DQ graphs."""

    mini: Mini
    workspace: Path

    @property
    def folder(self) -> Path:
        return self.workspace / "quantize" / "w8a8"


def photograph(path: Path, *size: int) -> Path:
    """A photograph of that width and height, saved."""
    crop = center_crop(open_source("skimage:astronaut").load(0), 256)
    Image.fromarray(crop).resize(size).save(path)
    return path
