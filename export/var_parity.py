"""The graphs of a VAR transformer in ONNX Runtime against PyTorch, at every shape they run at.

PyTorch computes first and is let go; then one graph at a time is loaded, so that the weights are
in memory once.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.sessions.onnxruntime import fast_session
from .generators.blocks import KeyValue
from .generators.var import VarTransformer
from .generators.var_config import VarConfig
from .parity import Arrays, Difference, cache_of, difference, empty_cache, past, require


@dataclass(frozen=True, slots=True)
class References:
    """What PyTorch computes: the graphs' inputs, their outputs, and the cached steps' logits."""

    config: VarConfig
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    inputs: NDArray[np.float32]
    condition: Arrays
    steps: tuple[NDArray[np.float32], ...]
    cache: Arrays
    full: NDArray[np.float32]


@torch.inference_mode()
def compute_references(model: VarTransformer, labels: Tensor, features: Tensor) -> References:
    """labels int64 [rows], features [rows, L - first, 32] as `VarTransformer.forward` takes."""
    config = model.config
    x, modulation, head_modulation = model.condition(labels)
    inputs = torch.cat((x, model.word_embed(features)), dim=1)
    positions = model.positions()
    past: list[KeyValue] | None = None
    steps = []
    for a, b in pairwise(config.bounds):
        logits, past = model.step(inputs[:, a:b], positions[a:b], modulation, head_modulation, past)
        steps.append(logits.numpy())
    assert past is not None
    condition = (x, modulation, head_modulation)
    names = ("x", "modulation", "head_modulation")
    return References(
        config=config,
        labels=labels.numpy(),
        features=features.numpy(),
        inputs=inputs.numpy(),
        condition={name: t.numpy() for name, t in zip(names, condition, strict=True)},
        steps=tuple(steps),
        cache=cache_of(past),
        full=model(labels, features).numpy(),
    )


def check_var_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run condition.onnx, step.onnx at each scale from an empty cache, and full.onnx.

    Each step takes the cache that the one before it gave.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    found = [*check_condition(folder, wanted), *check_steps(folder, wanted)]
    gc.collect()
    feeds: Arrays = {"labels": wanted.labels, "features": wanted.features}
    logits = fast_session(folder / "full.onnx").run(feeds)["logits"]
    found.append(difference("full", "logits", logits, wanted.full))
    for one in found:
        require(one)
    return tuple(found)


def check_condition(folder: Path, wanted: References) -> list[Difference]:
    outputs = fast_session(folder / "condition.onnx").run({"labels": wanted.labels})
    return [
        difference("condition", name, outputs[name], array)
        for name, array in wanted.condition.items()
    ]


def check_steps(folder: Path, wanted: References) -> list[Difference]:
    config = wanted.config
    session = fast_session(folder / "step.onnx")
    constant = {k: wanted.condition[k] for k in ("modulation", "head_modulation")}
    cache = empty_cache(wanted.cache, len(wanted.labels), config.heads, config.head_dim)
    found = []
    for (a, b), logits in zip(pairwise(config.bounds), wanted.steps, strict=True):
        feeds: Arrays = {"x": wanted.inputs[:, a:b], "position_ids": np.arange(a, b)}
        outputs = session.run({**feeds, **constant, **cache})
        found.append(difference("step", "logits", outputs.pop("logits"), logits, b - a, a))
        cache = {past(name): array for name, array in outputs.items()}
    for name, array in wanted.cache.items():
        found.append(difference("step", name, cache[past(name)], array))
    return found
