"""The graphs of a PAR transformer in ONNX Runtime against PyTorch, at every kind of step.

PyTorch computes first and is let go; then the graphs are loaded.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
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
from .model import ParTransformer


@dataclass(frozen=True, slots=True)
class References:
    """What PyTorch computes in one pass over all positions.

    `sequence` int64 [rows, length], as the steps take it, `tokens` [rows, length - group];
    `logits` of the steps and `full` [rows, length, V]; `cache` by the names of a step's outputs.
    """

    group: int
    labels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sequence: NDArray[np.int64]
    logits: NDArray[np.float32]
    full: NDArray[np.float32]
    cache: Arrays


@torch.inference_mode()
def compute_par_references(
    model: ParTransformer, labels: Tensor, tokens: Tensor, form: ExportShape = DYNAMIC
) -> References:
    """labels int64 [rows], tokens int64 [rows, length]: those of real images, as generated."""
    seen = tokens[:, : -model.config.group]
    full, logits, presents = run_with_cache_type(model, form, lambda: model.run(labels, seen))
    return References(
        group=model.config.group,
        labels=labels.numpy(),
        tokens=seen.numpy(),
        sequence=model.sequence(labels, seen).numpy(),
        logits=logits.numpy(),
        full=full.numpy(),
        cache=cache_of(presents),
    )


def check_par_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run step.onnx at every kind of step, and full.onnx.

    Steps take the cache that the one before them gave; the last, behind those that are left out,
    takes PyTorch's.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    found = check_steps(folder, wanted)
    gc.collect()
    feeds: Arrays = {"labels": wanted.labels, "tokens": wanted.tokens}
    logits = mapped_session(folder / "full.onnx").run(feeds)["logits"]
    found.append(difference("full", "logits", logits, wanted.full))
    for one in found:
        require(one)
    return tuple(found)


def check_steps(folder: Path, wanted: References) -> list[Difference]:
    step = mapped_session(folder / "step.onnx")
    found: list[Difference] = []
    end, cache = 0, cached(wanted, 0)
    for a, b in steps(wanted.sequence.shape[1], wanted.group):
        if a != end:
            cache = cached(wanted, a)
        feeds: Arrays = {"tokens": wanted.sequence[:, a:b], "position_ids": np.arange(a, b)}
        outputs = step.run({**feeds, **cache})
        logits = outputs.pop("logits")
        found.append(difference("step", "logits", logits, wanted.logits[:, a:b], b - a, a))
        end, cache = b, {past_name(name): array for name, array in outputs.items()}
    for name, array in wanted.cache.items():
        found.append(difference("step", name, cache[past_name(name)], array))
    return found


def cached(wanted: References, positions: int) -> Arrays:
    """What a step behind so many positions takes, of PyTorch's."""
    return {past_name(name): array[:, :, :positions] for name, array in wanted.cache.items()}


def steps(length: int, group: int) -> list[tuple[int, int]]:
    """Bounds of the steps of one token, of the first two groups and of the last."""
    singles = [(a, a + 1) for a in range(group)]
    groups = [(a, a + group) for a in range(group, length, group)]
    return [*singles, *dict.fromkeys((*groups[:2], groups[-1]))]
