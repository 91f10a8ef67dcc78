"""What all sources of samples have in common, for calibration and validation alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar

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
        """Names that manifests and reports call the inputs by: of files, arrays, or a seed.

        Calibration and validation call the same input by the same name.
        """
        ...

    @property
    @abstractmethod
    def digests(self) -> Mapping[str, str]:
        """The sha256 of each file by its name; empty for what is computed."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that could not be read, as `NAME: REASON`."""
        return ()

    @property
    def synthetic(self) -> bool:
        """Whether the samples are noise, which every report made from them says."""
        return False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many inputs are used: images, arrays or files, not rows."""
        ...

    @property
    def drawn(self) -> tuple[int, ...]:
        """The classes of generated images that nobody named."""
        return ()

    @property
    def sample_names(self) -> tuple[str, ...]:
        """What the user calls each sample, in their order; empty where that is not known."""
        return ()

    @abstractmethod
    def samples(self, progress: Progress) -> Iterator[Sample]:
        """Yield the samples, each made when it is asked for; `progress` is told of them."""
        ...


def reported(samples: Iterator[SampleT], count: int, progress: Progress) -> Iterator[SampleT]:
    """Yield `count` samples; `progress` is told of each when the next one is asked for."""
    for done, sample in enumerate(samples, start=1):
        yield sample
        progress("samples", done, count)
