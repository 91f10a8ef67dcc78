"""Compare the graphs of a VAR transformer with PyTorch, at every shape they run at.

PyTorch computes first, block by block, and is released; then one graph at a time is opened with its
weights mapped. So the weights are in memory once, as pages of a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.facts import Difference
from ...export.parity import Arrays, difference
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.sessions.open import mapped_session
from ..shared.cached_steps import check_steps, required, run_with_cache_type
from ..shared.transformer import KeyValue
from .config import VarConfig
from .model import VarBlock, VarTransformer


@dataclass(frozen=True, slots=True)
class References:
    """Hold PyTorch's results: the graphs' inputs and outputs, and the cached steps' logits.

    `steps` and `full` are [rows, L, V]; they differ where the caches are rounded.
    """

    config: VarConfig
    form: ExportShape
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    inputs: NDArray[np.float32]
    condition: Arrays
    steps: NDArray[np.float32]
    cache: Arrays
    full: NDArray[np.float32]


@torch.inference_mode()
def compute_references(
    model: VarTransformer, labels: Tensor, features: Tensor, form: ExportShape = DYNAMIC
) -> References:
    """Compute references of labels int64 [rows] and features [rows, L - first, 32].

    They are those of `VarTransformer.forward`. With static shapes the rows are as many as these
    have.
    """
    condition = model.condition(labels)
    inputs = torch.cat((condition[0], model.word_embed(features)), dim=1)
    full, steps, cache = run_with_cache_type(
        model, form, lambda: run_blocks(model, inputs, *condition[1:])
    )
    names = ("x", "modulation", "head_modulation")
    return References(
        config=model.config,
        form=form,
        labels=labels.numpy(),
        features=features.numpy(),
        inputs=inputs.numpy(),
        condition={name: t.numpy() for name, t in zip(names, condition, strict=True)},
        steps=steps.numpy(),
        cache=cache,
        full=full.numpy(),
    )


def run_blocks(
    model: VarTransformer, inputs: Tensor, modulation: Tensor, head_modulation: Tensor
) -> tuple[Tensor, Arrays]:
    """Return logits [rows, L, V] and the caches after the last scale, teacher-forced.

    All cached steps of one block come before those of the next: each weight is needed once.
    """
    bounds = model.config.bounds
    parts = [(inputs + model.positions())[:, a:b] for a, b in pairwise(bounds)]
    cache: Arrays = {}
    for i, block in enumerate(model.blocks):
        past: KeyValue | None = None
        for k, part in enumerate(parts):
            parts[k], past = cast(VarBlock, block)(part, modulation[:, i], past)
        assert past is not None
        cache[f"present_key.{i}"], cache[f"present_value.{i}"] = (t.numpy() for t in past)
    return model.logits(torch.cat(parts, dim=1), head_modulation), cache


def check_var_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run condition.onnx, the step at each scale from an empty cache, and full.onnx.

    Each step takes the cache that the one before it gave.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    condition, scales = check_condition(folder, wanted), check_scales(folder, wanted)
    return required([*condition, *scales, check_teacher_forced(folder, wanted)])


def check_condition(folder: Path, wanted: References) -> list[Difference]:
    outputs = mapped_session(folder / "condition.onnx").run({"labels": wanted.labels})
    return [
        difference("condition", name, outputs[name], array)
        for name, array in wanted.condition.items()
    ]


def check_scales(folder: Path, wanted: References) -> list[Difference]:
    scales = list(pairwise(wanted.config.bounds))
    constant = {k: wanted.condition[k] for k in ("modulation", "head_modulation")}
    return check_steps(
        folder,
        scales,
        lambda a, b: {"x": wanted.inputs[:, a:b], **constant},
        wanted.steps,
        wanted.cache,
        wanted.form.step_names(len(scales)),
    )


def check_teacher_forced(folder: Path, wanted: References) -> Difference:
    """Compare the graph of all positions row by row: its attention has all positions squared."""
    session = mapped_session(folder / "full.onnx")
    rows = [
        session.run({"labels": wanted.labels[k : k + 1], "features": wanted.features[k : k + 1]})
        for k in range(len(wanted.labels))
    ]
    logits = np.concatenate([row["logits"] for row in rows])
    return difference("full", "logits", logits, wanted.full)
