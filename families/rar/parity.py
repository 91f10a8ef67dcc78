"""The graphs of a RAR transformer in ONNX Runtime against PyTorch, at every kind of step.

PyTorch computes first and is let go; then the graphs are loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.parity import Arrays, Difference, difference, require
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.kv_cache import past_name
from ...runtime.sessions.onnxruntime import mapped_session
from ..shared.cached_steps import cache_of, run_with_cache_type
from .config import RarConfig
from .model import CHUNKS, RarTransformer

PLACES = (0, 1, -1)  # positions whose modulation is compared; a wrong one of another shows later
SINGLE = 2  # steps of one token behind the first; the last step is another
CHUNK = 32  # positions of the steps between: the modulations of all at once are large


@dataclass(frozen=True, slots=True)
class References:
    """What PyTorch computes in one pass over the cls token, the class and all tokens but the last.

    `sequence` int64 [rows, positions], `logits` of the steps and `full` [rows, positions, V];
    `condition` are the outputs of condition.onnx for a few positions.
    """

    config: RarConfig
    labels: NDArray[np.int64]
    sequence: NDArray[np.int64]
    condition: Arrays
    logits: NDArray[np.float32]
    full: NDArray[np.float32]
    cache: Arrays


@torch.inference_mode()
def compute_rar_references(
    model: RarTransformer, labels: Tensor, tokens: Tensor, form: ExportShape = DYNAMIC
) -> References:
    """labels int64 [rows], tokens int64 [rows, L]: those of real images."""
    config, seen = model.config, tokens[:, :-1]
    full, logits, presents = run_with_cache_type(model, form, lambda: model.run(labels, seen))
    condition = model.conditions(labels, torch.from_numpy(places(config)))
    modulation = torch.cat(list(model.modulations(condition)), dim=2).numpy()
    head = model.adaln_before_head(condition).numpy()
    return References(
        config=config,
        labels=labels.numpy(),
        sequence=torch.cat((model.prefix(labels), seen), dim=1).numpy(),
        condition={
            "modulation": modulation.reshape(len(labels), -1, config.depth, CHUNKS, config.width),
            "head_modulation": head.reshape(len(labels), -1, 2, config.width),
        },
        logits=logits.numpy(),
        full=full.numpy(),
        cache=cache_of(presents),
    )


def check_rar_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run condition.onnx and step.onnx from an empty cache to the last token, and full.onnx.

    Each step takes the cache that the one before it gave.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    found = check_steps(folder, wanted)
    gc.collect()
    feeds: Arrays = {"labels": wanted.labels, "tokens": wanted.sequence[:, 2:]}
    logits = mapped_session(folder / "full.onnx").run(feeds)["logits"]
    found.append(difference("full", "logits", logits, wanted.full[:, 1:]))
    for one in found:
        require(one)
    return tuple(found)


def places(config: RarConfig) -> NDArray[np.int64]:
    return np.arange(config.positions)[list(PLACES)]


def check_steps(folder: Path, wanted: References) -> list[Difference]:
    config = wanted.config
    condition, step = (mapped_session(folder / f"{name}.onnx") for name in ("condition", "step"))
    outputs = condition.run({"labels": wanted.labels, "position_ids": places(config)})
    found = [
        difference("condition", name, outputs[name], array)
        for name, array in wanted.condition.items()
    ]
    cache = {past_name(name): array[:, :, :0] for name, array in wanted.cache.items()}
    for a, b in steps(config.positions):
        positions = np.arange(a, b)
        constant = condition.run({"labels": wanted.labels, "position_ids": positions})
        feeds: Arrays = {"tokens": wanted.sequence[:, a:b], "position_ids": positions}
        outputs = step.run({**feeds, **constant, **cache})
        logits = outputs.pop("logits")
        found.append(difference("step", "logits", logits, wanted.logits[:, a:b], b - a, a))
        cache = {past_name(name): array for name, array in outputs.items()}
    for name, array in wanted.cache.items():
        found.append(difference("step", name, cache[past_name(name)], array))
    return found


def steps(positions: int) -> Iterator[tuple[int, int]]:
    """Prefill of two tokens, single ones, chunks, and a single one behind all others."""
    last = max(positions - 1, 2)
    start = min(2 + SINGLE, last)
    bounds = {0, *range(2, start), *range(start, last, CHUNK), last, positions}
    return pairwise(sorted(bounds))
