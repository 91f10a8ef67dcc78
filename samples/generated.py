"""Images that a generator makes itself, and the rows or runs that its graphs are fed for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..runtime.generator import BATCH_SIZE, Generated, Generator, choose_sampling
from ..runtime.recording import Trajectories
from ..runtime.spec import GeneratorSpec
from .base import Progress, SampleSource
from .decoded import decoder_feeds, decoder_runs
from .files import Sample
from .forcing import forced_rows, teacher_forcing

Steps = Callable[[int, int], None]  # called with the steps done and their total


@dataclass(frozen=True, slots=True)
class GeneratedSamples(SampleSource):
    """Images of these classes, by the model's own sampling; the seed decides them.

    `first` is the number of the first one, where they are a part of a longer list. `are_drawn` says
    that nobody named the classes. Of images whose number is in `decoded` the decoder's feeds are
    samples too.
    """

    export: Path
    spec: GeneratorSpec
    labels: tuple[int, ...]
    seed: int
    batch_size: int = BATCH_SIZE
    first: int = 0
    threads: int = 0
    are_drawn: bool = False
    decoded: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (f"generated from seed {self.seed}",)

    @property
    def image_names(self) -> tuple[str, ...]:
        """Return the name of each image in reports."""
        labels = enumerate(self.labels, start=self.first)
        return tuple(f"seed {self.seed}, picture {k}, class {c}" for k, c in labels)

    @property
    def digests(self) -> Mapping[str, str]:
        return {}

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def drawn(self) -> tuple[int, ...]:
        return self.labels if self.are_drawn else ()

    def all_decoded(self) -> SampleSource:
        return replace(self, decoded=tuple(range(self.first, self.first + self.count)))

    def samples(self, progress: Progress) -> Iterator[Sample]:
        """Yield rows of the teacher-forced graph, or the runs that a family keeps.

        Of each image there are the conditional row and, under guidance, that of the null class with
        the same tokens.
        """
        tick, recording = partial(progress, f"steps of {self.count} samples"), self.spec.recording
        feeds, first = decoder_feeds(self.export, self.spec, self.threads), self.first
        if recording is not None:
            for made, runs in recording.generated(self.trajectories(progress=tick)):
                yield from (run for _, run in runs)
                yield from decoder_runs(feeds, made.tokens, first, self.decoded)
                first += len(made.tokens)
            return
        force, null = teacher_forcing(self.export), null_class(self.spec)
        generator = Generator.open(self.export, device="cpu", threads=self.threads)
        for batch in self.batches(generator, progress=tick):
            yield from forced_rows(force(batch.tokens), batch.labels, null)
            yield from decoder_runs(feeds, batch.tokens, first, self.decoded)
            first += len(batch.tokens)

    def batches(
        self, generator: Generator, seed: int | None = None, progress: Steps | None = None
    ) -> Iterator[Generated]:
        """Yield the images as `generator` makes them, or those of another seed."""
        return generator.batches(
            self.labels,
            seed=self.seed if seed is None else seed,
            sampling=choose_sampling(self.spec),
            batch_size=self.batch_size,
            first=self.first,
            progress=progress,
        )

    def trajectories(self, *, exact: bool = False, progress: Steps | None = None) -> Trajectories:
        """Return what is asked of a family that records runs; `exact` as in `Trajectories`."""
        return Trajectories(
            export=self.export,
            labels=self.labels,
            sampling=choose_sampling(self.spec),
            seed=self.seed,
            batch_size=self.batch_size,
            first=self.first,
            threads=self.threads,
            exact=exact,
            progress=progress,
        )


def null_class(spec: GeneratorSpec) -> int | None:
    """Return the class of rows without a condition; None: the model samples without guidance."""
    return spec.num_classes if choose_sampling(spec).cfg > 0 else None
