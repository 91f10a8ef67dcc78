"""Make one shard of an evaluation, in whatever process or actor it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.generator import Generator
from ..quality.open import FeatureNetwork, open_feature_network
from .shards import EvaluationPlan, write_shard


@dataclass(frozen=True, slots=True)
class Workplace:
    """Say what a worker opens once: the graphs, the network, and where shards are written.

    Every worker has to see these paths.
    """

    graphs: Path
    output: Path
    network: Path | None
    device: str
    allow_fallback: bool
    threads: int


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Say which shard of a plan to make, and where."""

    place: Workplace
    plan: EvaluationPlan
    shard: int


class ShardMaker:
    """Hold the sessions that make the images of shards and their features."""

    def __init__(self, place: Workplace) -> None:
        """Open the graphs, whose digests the caller has checked, and the network."""
        self._place = place
        self.generator = Generator.open(
            place.graphs,
            device=place.device,
            allow_fallback=place.allow_fallback,
            threads=place.threads,
            verify=False,
        )
        self._network: FeatureNetwork | None = None
        if place.network is not None:
            side = self.generator.spec.image_size
            self._network = open_feature_network(place.network, side, place.threads)

    def make(self, task: ShardTask) -> int:
        """Make and write a shard; returns its number.

        Raises:
            ArvgError: the images or their features cannot be made or written.
        """
        numbers = task.plan.numbers(task.shard)
        images: list[NDArray[np.uint8]] = []
        features: list[dict[str, NDArray[Any]]] = []
        for made in self.generator.batches(
            task.plan.labels_of(task.shard),
            seed=task.plan.seed,
            sampling=task.plan.sampling,
            batch_size=task.plan.batch_size,
            first=numbers.start,
        ):
            images.extend(made.images)
            if self._network is not None:
                features.append(self._network.extract(made.images))
        names = features[0] if features else ()
        joined = {
            name: np.concatenate([f[name] for f in features]).astype(np.float32) for name in names
        }
        write_shard(self._place.output, task.plan, task.shard, images, joined)
        return task.shard


@lru_cache(maxsize=1)
def maker(place: Workplace) -> ShardMaker:
    """Return the process's own sessions, opened at its first shard."""
    return ShardMaker(place)


def make_shard(task: ShardTask) -> int:
    return maker(task.place).make(task)
