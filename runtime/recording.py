"""Record runs along a trajectory, as samples of a generator without a graph of all positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .generator import Generated
from .images import Uint8Image
from .sampling import Sampling

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class GraphRun:
    """Hold what one graph was fed in one run, with as many rows as it had."""

    graph: str
    feeds: Arrays


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Say which images' trajectories are recorded: their classes, and how they are generated.

    `first` is the number of the first image, where these are a part of a longer list. With `exact`,
    graphs run without rewrites. `progress` is called with the steps done and their total.
    """

    export: Path
    labels: Sequence[int]
    sampling: Sampling
    seed: int
    batch_size: int
    first: int = 0
    threads: int = 0
    exact: bool = False
    progress: Callable[[int, int], None] | None = None


class Recording(Protocol):
    """Define which runs of which graphs are samples, and how saved ones are checked.

    A run of the first of `graphs` has `labels`: the rows of one image, the conditional ones, then
    under guidance as many of the null class.
    """

    @property
    def graphs(self) -> tuple[str, ...]: ...

    @property
    def runs_per_image(self) -> Mapping[str, int]:
        """Return how many runs of each graph are saved per image, by the model's own sampling."""
        ...

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        """Return the outputs that validation compares, by graph."""
        ...

    def generated(
        self, asked: Trajectories
    ) -> Iterator[tuple[Generated, list[tuple[int, GraphRun]]]]:
        """Yield batches of images, with the saved runs of each by the image's number."""
        ...

    def encoded(
        self,
        export: Path,
        load: Callable[[int], Uint8Image],
        labels: Sequence[int],
        *,
        part: range,
        seed: int,
        threads: int = 0,
    ) -> Iterator[GraphRun]:
        """Yield the same runs along trajectories that lead to the user's images `part`."""
        ...

    def check(self, graph: str, arrays: Arrays, path: Path) -> None:
        """Check the values of a saved run.

        Raises:
            CalibrationError: a value is out of range.
        """
        ...

    def independent(self, run: GraphRun) -> GraphRun:
        """Return the run without what an earlier graph of the same side makes in validation."""
        ...

    def carried(self, run: GraphRun) -> Callable[[Arrays], dict[str, Array]] | None:
        """Return what makes inputs from the outputs of the first graph, None if nothing does."""
        ...
