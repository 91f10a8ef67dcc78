"""The graphs of a transformer whose steps keep keys and values, against one pass of PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.facts import Difference
from ...export.parity import Arrays, difference, require
from ...export.shape import DYNAMIC, ExportShape
from ...export.tracing import cache_type
from ...runtime.kv_cache import past_name
from ...runtime.sessions.open import mapped_session
from .transformer import HasModules, KeyValue, set_cache_type

CacheT = TypeVar("CacheT")
Bounds = Iterable[tuple[int, int]]  # the first position of each step, and that behind its last


class TokenModel(HasModules, Protocol):
    """A transformer that makes tokens from the class and the tokens so far."""

    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """int64 [rows], [rows, m] -> what the steps take, int64 [rows, n]."""

    def run(self, labels: Tensor, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """Return logits [rows, n, V] of all positions, and each block's keys and values."""


@dataclass(frozen=True, slots=True)
class StepReferences:
    """Hold what PyTorch computes in one pass over all positions.

    `sequence` int64 [rows, n], as the steps take it, `tokens` [rows, m] those of images in it;
    `logits` of the steps [rows, n, V], `full` those of full.onnx, which differ where caches are
    rounded; `cache` by the names of a step's outputs.
    """

    labels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sequence: NDArray[np.int64]
    logits: NDArray[np.float32]
    full: NDArray[np.float32]
    cache: Arrays


@torch.inference_mode()
def compute_step_references(
    model: TokenModel, labels: Tensor, tokens: Tensor, form: ExportShape = DYNAMIC
) -> StepReferences:
    """Run labels int64 [rows] and tokens int64 [rows, m], as full.onnx takes them."""
    full, logits, presents = run_with_cache_type(model, form, lambda: model.run(labels, tokens))
    return StepReferences(
        labels=labels.numpy(),
        tokens=tokens.numpy(),
        sequence=model.sequence(labels, tokens).numpy(),
        logits=logits.numpy(),
        full=full.numpy(),
        cache=cache_of(presents),
    )


def cache_of(presents: Sequence[KeyValue]) -> Arrays:
    """Return each block's keys and values by the names of a step's outputs."""
    keys: Arrays = {f"present_key.{i}": k.numpy() for i, (k, _) in enumerate(presents)}
    return keys | {f"present_value.{i}": v.numpy() for i, (_, v) in enumerate(presents)}


def run_with_cache_type(
    model: HasModules, form: ExportShape, run: Callable[[], tuple[Tensor, CacheT]]
) -> tuple[Tensor, Tensor, CacheT]:
    """Return logits with exact caches, then logits and caches as the form's steps keep these."""
    full, cache = run()
    kind = cache_type(form)
    if kind is None:
        return full, full, cache
    set_cache_type(model, kind)
    logits, cache = run()
    set_cache_type(model, None)
    return full, logits, cache


def check_parity(folder: Path, wanted: StepReferences, bounds: Bounds) -> tuple[Difference, ...]:
    """Run step.onnx at every kind of step, and full.onnx.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """

    def tokens(a: int, b: int) -> Arrays:
        return {"tokens": wanted.sequence[:, a:b]}

    found = check_steps(folder, bounds, tokens, wanted.logits, wanted.cache)
    gc.collect()
    return required([*found, check_teacher_forced(folder, wanted)])


def check_steps(
    folder: Path,
    bounds: Bounds,
    feeds: Callable[[int, int], Arrays],
    logits: NDArray[np.float32],
    cache: Arrays,
    graphs: Sequence[str] = ("step",),
) -> list[Difference]:
    """Compare logits of each step, and the keys and values behind the last one.

    Each step takes the cache that the one before it gave; one that does not begin where that ended
    takes PyTorch's `cache`. `feeds` gives a step's other inputs. `graphs` has the step of every
    shape, or one for each, of which only one is open.
    """
    found: list[Difference] = []
    end, kept = 0, cached(cache, 0)
    for k, (a, b) in enumerate(bounds):
        if k < len(graphs):
            graph = graphs[k]
            session = mapped_session(folder / f"{graph}.onnx")
        if a != end:
            kept = cached(cache, a)
        # A first step of fixed shapes takes no cache.
        past = {name: array for name, array in kept.items() if name in session.inputs}
        outputs = session.run({**feeds(a, b), "position_ids": np.arange(a, b), **past})
        value = outputs.pop("logits")
        found.append(difference(graph, "logits", value, logits[:, a:b], b - a, a))
        end, kept = b, {past_name(name): array for name, array in outputs.items()}
    for name, array in cache.items():
        found.append(difference(graph, name, kept[past_name(name)], array))
    return found


def cached(cache: Arrays, positions: int) -> Arrays:
    """Return what a step behind so many positions takes, of PyTorch's."""
    return {past_name(name): array[:, :, :positions] for name, array in cache.items()}


def check_teacher_forced(folder: Path, wanted: StepReferences) -> Difference:
    """Compare full.onnx."""
    feeds: Arrays = {"labels": wanted.labels, "tokens": wanted.tokens}
    logits = mapped_session(folder / "full.onnx").run(feeds)["logits"]
    return difference("full", "logits", logits, wanted.full)


def required(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return the differences, all of them small.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and the step's shape.
    """
    for one in found:
        require(one)
    return tuple(found)
