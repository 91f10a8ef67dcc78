"""A user's images as a generator sees them: their tokens, in the order that it makes them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CalibrationError
from ..runtime.images import shrunk_crop, to_model
from ..runtime.labels import parse_labels
from ..runtime.spec import GeneratorSpec
from ..runtime.tokenizer import ImageTokenizer
from .base import Progress, SampleSource
from .decoded import decoder_feeds, decoder_runs
from .files import Sample
from .forcing import forced_rows, teacher_forcing
from .generated import null_class
from .images import ImageSamples, ImageSource


@dataclass(frozen=True, slots=True)
class EncodedImages(ImageSamples):
    """Images through the generator's own tokenizer: `part` of them, with a class each.

    `labels` are those of all images. The seed decides the trajectories that lead to them, of a
    family that has some. Of images whose number is in `decoded` the decoder's feeds are samples
    too.
    """

    export: Path
    spec: GeneratorSpec
    images: ImageSource
    labels: tuple[int, ...]
    part: range
    seed: int
    threads: int = 0
    decoded: tuple[int, ...] = ()

    @classmethod
    def open(
        cls,
        export: Path,
        spec: GeneratorSpec,
        images: ImageSource,
        labels: str | None,
        part: range,
        seed: int,
        threads: int = 0,
        decoded: tuple[int, ...] = (),
    ) -> EncodedImages:
        """Check the images and read their labels.

        Raises:
            CalibrationError: no labels, neither one nor one an image, or images that are too small.
            GenerationError: a label out of range.
        """
        classes = image_labels(images, labels, spec.num_classes)
        require_size(images, spec.image_size)
        return cls(export, spec, images, tuple(classes), part, seed, threads, decoded)

    def all_decoded(self) -> SampleSource:
        return replace(self, decoded=tuple(self.part))

    def samples(self, progress: Progress) -> Iterator[Sample]:
        """Yield what `GeneratedSamples` does, of these images; there is no progress to tell."""
        recording = self.spec.recording
        feeds = decoder_feeds(self.export, self.spec, self.threads)
        if recording is not None:
            for number, tokens in zip(self.decoded, self.tokens(self.decoded), strict=True):
                yield from decoder_runs(feeds, tokens, number, self.decoded)
            yield from recording.encoded(
                self.export,
                self.images.load,
                self.labels,
                part=self.part,
                seed=self.seed,
                threads=self.threads,
            )
            return
        force, null = teacher_forcing(self.export), null_class(self.spec)
        labels = self.labels[self.part.start : self.part.stop]
        for number, tokens, label in zip(self.part, self.tokens(), labels, strict=True):
            yield from forced_rows(force(tokens), [label], null)
            yield from decoder_runs(feeds, tokens, number, self.decoded)

    def tokens(self, numbers: Iterable[int] | None = None) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each image (None: of `part`), int32 [1, L], as they are generated.

        Continuous ones are latents, float32 [1, c, h, w].
        """
        tokenizer = ImageTokenizer.open(self.export, device="cpu", threads=self.threads)
        for k in self.part if numbers is None else numbers:
            image = shrunk_crop(self.images.load(k), self.spec.image_size)
            indices, latent = tokenizer.encode(to_model(image))
            yield latent if indices is None else indices.reshape(1, -1)[:, self.spec.order]


def image_labels(source: ImageSource, labels: str | None, num_classes: int) -> list[int]:
    """Return a class for each image, in their order: one each, or the same one for all.

    Raises:
        CalibrationError: none given, or another number of them than of images.
        GenerationError: a label out of range.
    """
    count = len(source.names)
    found = None if labels is None else parse_labels([labels], num_classes)
    if found is None or len(found) not in (1, count):
        what = f"{count} images without classes"
        raise CalibrationError(
            what if found is None else f"{len(found)} classes for {count} images",
            where="--labels",
            do="give a class an image, in the order of their names, or one for all",
        )
    return found if len(found) == count else found * count


def require_size(source: ImageSource, size: int) -> None:
    """Raises CalibrationError for images with a side shorter than the model's own."""
    shapes = ((name, source.load(k).shape) for k, name in enumerate(source.names))
    small = [f"{name} {w}x{h}" for name, (h, w, _) in shapes if min(h, w) < size]
    if small:
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        raise CalibrationError(
            f"smaller than the {size}x{size} pixels that the model makes: "
            f"{', '.join(small[:3])}{more}",
            where="--images",
            do="remove them, or enlarge them yourself",
        )
