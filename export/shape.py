"""How a generator's graphs are made. Torch-free: the command line reads it without."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.spec import KvType, step_names


@dataclass(frozen=True, slots=True)
class GraphForm:
    """Dynamic shapes and one step graph, or fixed ones and a step graph a scale.

    `static_batch` images at once have twice as many rows, as guidance needs them. Keys and values
    are kept between steps as `kv_type`; the arithmetic is float32 in any case.
    """

    static_batch: int | None = None
    kv_type: KvType = "float32"

    @property
    def rows(self) -> int | None:
        return None if self.static_batch is None else 2 * self.static_batch

    def step_names(self, scales: int) -> tuple[str, ...]:
        return step_names(self.static_batch, scales)


DYNAMIC = GraphForm()
