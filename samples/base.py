"""The protocol of all sources of samples, for calibration and validation alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from ..errors import CalibrationError
from .files import Sample

Progress = Callable[[str, int, int], None]
SampleT = TypeVar("SampleT")


class SampleSource(Protocol):
    """Named inputs of a model with their digests, some of which were skipped.

    A source is opened for a model and exists only if it fits: whatever is refused is refused
    before it is there. (What arrays are called and how many samples they hold depends on the
    graphs, so that a source which is checked later could not name them.)
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the inputs' names in manifests and reports: of files, arrays, or a seed.

        Calibration and validation call the same input by the same name.
        """
        ...

    @property
    @abstractmethod
    def digests(self) -> Mapping[str, str]:
        """Return the sha256 of each file by its name; nothing for what is computed."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Return the files that could not be read, as `NAME: REASON`."""
        return ()

    @property
    def synthetic(self) -> bool:
        """Return whether the samples are noise, which every report made from them says."""
        return False

    @property
    @abstractmethod
    def count(self) -> int:
        """Return how many inputs are used: images, arrays or files, not rows."""
        ...

    @property
    def drawn(self) -> tuple[int, ...]:
        """Return the classes of generated images that nobody named."""
        return ()

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Return the user's name of each sample, in their order; nothing where it is not known."""
        return ()

    def all_decoded(self) -> SampleSource:
        """Return the same with what an image decoder is fed of every image of a generator."""
        return self

    @abstractmethod
    def samples(self, progress: Progress) -> Iterator[Sample]:
        """Yield the samples, each made when it is asked for; `progress` is told of them."""
        ...


def require_enough(held: int, asked: int | None, where: str) -> None:
    """Raise CalibrationError where fewer samples are given than were asked for."""
    if asked is not None and held < asked:
        raise CalibrationError(
            f"holds {held} sample{'s' if held != 1 else ''}, {asked} were asked for",
            where=where,
            do=f"give more, or --samples {held}",
        )


def reported(samples: Iterator[SampleT], count: int, progress: Progress) -> Iterator[SampleT]:
    """Yield `count` samples; `progress` is told of each when the next one is asked for."""
    for done, sample in enumerate(samples, start=1):
        yield sample
        progress("samples", done, count)
