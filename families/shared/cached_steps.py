"""Run a transformer in PyTorch with the caches of its step graphs, to compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ...export.parity import Arrays
from ...export.shape import ExportShape
from ...export.tracing import cache_type
from .transformer import KeyValue, set_cache_type

CacheT = TypeVar("CacheT")


def cache_of(presents: Sequence[KeyValue]) -> Arrays:
    """Return each block's keys and values by the names of a step's outputs."""
    keys: Arrays = {f"present_key.{i}": k.numpy() for i, (k, _) in enumerate(presents)}
    return keys | {f"present_value.{i}": v.numpy() for i, (_, v) in enumerate(presents)}


def run_with_cache_type(
    model: nn.Module, form: ExportShape, run: Callable[[], tuple[Tensor, CacheT]]
) -> tuple[Tensor, Tensor, CacheT]:
    """Return logits with exact caches, then logits and caches as the step graphs store them."""
    full, cache = run()
    kind = cache_type(form)
    if kind is None:
        return full, full, cache
    set_cache_type(model, kind)
    logits, cache = run()
    set_cache_type(model, None)
    return full, logits, cache
