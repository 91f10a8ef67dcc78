"""The graphs of a RAR transformer in ONNX Runtime against PyTorch, at every kind of step.

PyTorch computes first and is let go; then the graphs are loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.facts import Difference
from ...export.parity import Arrays, difference
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.sessions.open import mapped_session
from ..shared.cached_steps import (
    StepReferences,
    check_steps,
    check_teacher_forced,
    compute_step_references,
    required,
)
from .config import RarConfig
from .model import CHUNKS, RarTransformer

PLACES = (0, 1, -1)  # positions whose modulation is compared; a wrong one of another shows later
SINGLE = 2  # steps of one token behind the first; the last step is another
CHUNK = 32  # positions of the steps between: the modulations of all at once are large


@dataclass(frozen=True, slots=True)
class References:
    """Hold what PyTorch computes for the cls token, the class and all tokens but the last.

    `condition` are the outputs of condition.onnx for a few positions.
    """

    config: RarConfig
    condition: Arrays
    steps: StepReferences


@torch.inference_mode()
def compute_rar_references(
    model: RarTransformer, labels: Tensor, tokens: Tensor, form: ExportShape = DYNAMIC
) -> References:
    """labels int64 [rows], tokens int64 [rows, L]: those of real images."""
    config = model.config
    steps = compute_step_references(model, labels, tokens[:, :-1], form)
    condition = model.conditions(labels, torch.from_numpy(places(config)))
    modulation = torch.cat(list(model.modulations(condition)), dim=2).numpy()
    head = model.adaln_before_head(condition).numpy()
    return References(
        config=config,
        condition={
            "modulation": modulation.reshape(len(labels), -1, config.depth, CHUNKS, config.width),
            "head_modulation": head.reshape(len(labels), -1, 2, config.width),
        },
        steps=replace(steps, full=steps.full[:, 1:]),  # the cls token's predict nothing
    )


def check_rar_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run condition.onnx and step.onnx from an empty cache to the last token, and full.onnx.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    found = check_condition_and_steps(folder, wanted)
    gc.collect()
    return required([*found, check_teacher_forced(folder, wanted.steps)])


def places(config: RarConfig) -> NDArray[np.int64]:
    return np.arange(config.positions)[list(PLACES)]


def check_condition_and_steps(folder: Path, wanted: References) -> list[Difference]:
    config, given = wanted.config, wanted.steps
    condition = mapped_session(folder / "condition.onnx")
    outputs = condition.run({"labels": given.labels, "position_ids": places(config)})
    found = [
        difference("condition", name, outputs[name], array)
        for name, array in wanted.condition.items()
    ]

    def feeds(a: int, b: int) -> Arrays:
        constant = condition.run({"labels": given.labels, "position_ids": np.arange(a, b)})
        return {"tokens": given.sequence[:, a:b], **constant}

    bounds = steps(config.positions)
    return found + check_steps(folder, bounds, feeds, given.logits, given.cache)


def steps(positions: int) -> Iterator[tuple[int, int]]:
    """Prefill of two tokens, single ones, chunks, and a single one behind all others."""
    last = max(positions - 1, 2)
    start = min(2 + SINGLE, last)
    bounds = {0, *range(2, start), *range(start, last, CHUNK), last, positions}
    return pairwise(sorted(bounds))
