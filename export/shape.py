"""Define how a generator's graphs are made; without torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.spec import KvType, step_names


@dataclass(frozen=True, slots=True)
class ExportShape:
    """Choose dynamic shapes and one step graph, or fixed shapes and a step graph per scale.

    `static_batch` images at once have twice as many rows, as guidance needs them. Keys and values
    are stored between steps as `kv_type`; the arithmetic is float32 in any case.
    """

    static_batch: int | None = None
    kv_type: KvType = "float32"

    @property
    def rows(self) -> int | None:
        return None if self.static_batch is None else 2 * self.static_batch

    def step_names(self, scales: int) -> tuple[str, ...]:
        return step_names(self.static_batch, scales)


DYNAMIC = ExportShape()
