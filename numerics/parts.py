"""Split arrays along their first axis, so that what is computed of them stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART = 2**22  # values at once, in arrays of float64


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """Read a weight [O, I, ...] times a scale [I] by slices of its output channels.

    The product never exists whole, unless it is made an array.
    """

    weight: NDArray[np.float32]
    scale: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def size(self) -> int:
        return self.weight.size

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        shaped = self.scale.reshape(1, -1, *(1,) * (self.weight.ndim - 2))
        scaled: NDArray[np.float32] = self.weight[part] * shaped
        return scaled

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[slice(None)]
        return whole if dtype is None else whole.astype(dtype, copy=False)


Weight = NDArray[np.float32] | ScaledWeight


def parts(array: NDArray[Any] | ScaledWeight, most: int | None = None) -> Iterator[slice]:
    """Yield slices of the first axis of an array, each of `most` (`PART`) values or of one row."""
    step = max(1, (most or PART) * len(array) // max(1, array.size))
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def made_in_parts(
    array: NDArray[Any], make: Callable[[slice], NDArray[Any]]
) -> NDArray[np.float32]:
    """Return float32 values of an array's shape, of which `make` computes each part's."""
    made = np.empty_like(array, np.float32)
    for part in parts(array):
        made[part] = make(part)
    return made
