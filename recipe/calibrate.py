"""Define the options of `calibrate`: which samples, how many, and how they are run."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from .base import COUNT, DEFAULT_SAMPLES, SEED, SIDE, Options, require_not_empty
from .descriptions import Groups, require_in_range, says


class CalibrateOptions(Options, frozen=True, kw_only=True):
    """Say what a model is calibrated on: images, arrays, or what a generator makes itself."""

    GROUPS: ClassVar[Groups] = {
        "Samples": (
            "images",
            "feeds",
            "labels",
            "samples",
            "batch_size",
            "seed",
            "size",
            "synthetic",
            "samples_from",
            "value_range",
        ),
        "Shards": ("shard",),
        "Distances (DGC)": ("dgc", "candidates", "dgc_select"),
    }

    images: Annotated[str | None, says("Folder of images, or skimage:NAME,NAME.")] = None
    feeds: Annotated[
        str | None, says("A .npz of arrays by input name, for graphs of your own.")
    ] = None
    labels: Annotated[
        str | None,
        says("A generator's classes, in turn, e.g. 0-4,7. Without it, drawn evenly of all."),
    ] = None
    samples: Annotated[
        int | None,
        says(
            "How many samples to take: the first arrays, crops of images, or images that a "
            f"generator makes. Without it, {DEFAULT_SAMPLES}, or all where fewer are given.",
            COUNT,
        ),
    ] = None
    batch_size: Annotated[
        int,
        says(
            "Samples in flight; memory grows with this, not with the samples.",
            COUNT,
        ),
    ] = 1
    seed: Annotated[int, says("Seed of the crops, or of the images.", SEED)] = 0
    size: Annotated[int, says("Side of the square crops.", SIDE)] = 256
    synthetic: Annotated[bool, says("Calibrate on uniform noise; every report says so.")] = False
    shard: Annotated[str | None, says("Make part K of N of the samples (K/N), to be merged.")] = (
        None
    )
    samples_from: Annotated[
        str | None, says("Use samples that were saved, all of them: a workspace or a folder.")
    ] = None
    value_range: Annotated[
        tuple[float, float] | None,
        says("Range that the float images of feeds must lie in. Without it, -16 to 16."),
    ] = None
    dgc: Annotated[bool, says("Choose a generator's rows by distance (DGC).")] = False
    candidates: Annotated[
        int | None,
        says("Images that DGC chooses from. Without it, twice the samples.", COUNT),
    ] = None
    dgc_select: Annotated[
        Literal["ratio", "distance"],
        says("Keep as many conditional rows as are far, the first ones, or keep the far ones."),
    ] = "ratio"

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "images", "feeds", "labels", "samples_from")
        if self.samples_from is not None:
            others = [n for n in ("images", "feeds", "labels", "synthetic") if getattr(self, n)]
            if others:
                raise ValueError(f"samples_from and {others[0]} exclude each other")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty")
        if self.candidates is not None and not self.dgc:
            raise ValueError("candidates are what dgc chooses from: set dgc")
        if self.dgc and self.shard is not None:
            raise ValueError(
                "dgc chooses among all candidates: make shards without it, merge them, and choose "
                "with samples_from"
            )
        if self.dgc and self.pool < self.count:
            raise ValueError(f"{self.count} samples of {self.pool} candidates leave no choice")
        if self.shard is not None:
            _, n = self.part
            if n > self.count:
                raise ValueError(f"{self.count} samples cannot be cut into {n} shards")
        if self.synthetic and (self.images is not None or self.feeds is not None):
            given = "images" if self.images is not None else "feeds"
            raise ValueError(f"synthetic noise and {given} exclude each other")

    @property
    def count(self) -> int:
        """Return how many samples to take, if there are as many."""
        return DEFAULT_SAMPLES if self.samples is None else self.samples

    @property
    def pool(self) -> int:
        """Return how many images to make: the samples, or the candidates for them."""
        if not self.dgc:
            return self.count
        return 2 * self.count if self.candidates is None else self.candidates

    @property
    def part(self) -> tuple[int, int]:
        """Return (K, N) of the shard, counted from 1; (1, 1) is all.

        Raises:
            ValueError: it is not written as K/N with 1 <= K <= N.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", self.shard or "1/1")
        k, n = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= k <= n:
            raise ValueError(f"shard {self.shard!r} is not K/N, part K of N from 1/N to N/N")
        return k, n
