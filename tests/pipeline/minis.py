"""The shipped minis in workspaces, and how well they foresee tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arvg_trt.runtime.generator import Generated
from arvg_trt.runtime.image_sources import open_source
from arvg_trt.runtime.images import center_crop
from arvg_trt.runtime.sessions.onnxruntime import fast_session

LABELS = np.arange(10)
SIDES = (1, 2, 3, 4, 5, 6, 8)
Tokens = NDArray[np.int32]


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
}


@dataclass(frozen=True)
class Mini:
    """A family, its mini's workspace and a picture of each class that it made."""

    family: str
    workspace: Path
    made: Generated

    def losses(self, labels: NDArray[np.int64], tokens: Tokens) -> NDArray[np.float64]:
        """Teacher-forced cross-entropy in nats, [N], of the tokens [N, L] under labels [N]."""
        export = self.workspace / "export"
        full = fast_session(export / "full.onnx")
        shown = SHOWN[self.family](tokens, export)
        logits = full.run({"labels": labels, **shown})["logits"].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, tokens[..., None].astype(np.int64), axis=-1)[..., 0]
        entropy: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=-1)) - chosen
        return entropy.mean(axis=1)


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
