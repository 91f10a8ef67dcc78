"""What a quantization is validated on, and how its graphs are measured and timed on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...calibrate.facts import CalibrationFacts
from ...errors import CalibrationError
from ...recipe.options import ValidateOptions
from ...runtime.images import center_crop, to_model
from ...runtime.sessions.onnxruntime import reference_session
from ...runtime.tokenizer import ImageTokenizer
from ...samples.arrays import CustomFeeds, open_feeds
from ...samples.files import GraphChain
from ...samples.images import ImageSource, open_source
from ...samples.sources import image_digests
from ...workspace.facts import custom_graphs, facts, tokenizer_of
from ...workspace.manifest import Manifest

KEPT_PICTURES = 4
ENGINE = "engine"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Parts of a report; `accuracy` of an image tokenizer, `outputs` of a user's own graphs,
    `generation` of a generator, with the names and classes of the pictures that it made and how.
    """

    accuracy: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    latency: dict[Any, Any] = field(default_factory=dict)
    pictures: list[Any] = field(default_factory=list)
    picture_names: tuple[str, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)
    classes: tuple[int, ...] = ()


class HeldOut(Protocol):
    """Samples that were kept from calibration."""

    @property
    def noun(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def skipped(self) -> tuple[str, ...]: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    def leaked(self, calibrated: Manifest) -> Sequence[str]:
        """What calibration has seen too."""
        ...

    def measure(
        self, export: Path, folders: Mapping[str, Path], progress: Progress
    ) -> Measurements:
        """Compare the graphs in `folders` (by candidate) with those of `export`."""
        ...


@dataclass(frozen=True, slots=True)
class HeldOutImages:
    """Images for an image tokenizer."""

    source: ImageSource
    codebook_size: int | None
    options: ValidateOptions
    noun: str = "images"

    @classmethod
    def open(
        cls, source: ImageSource, exported: Manifest, options: ValidateOptions
    ) -> HeldOutImages:
        """Raises CalibrationError for feeds, or a size that the tokenizer does not take."""
        tokenizer = tokenizer_of(exported)
        stride = tokenizer.stride
        if options.size % stride:
            raise CalibrationError(
                f"validation size {options.size} is not a multiple of the stride {stride}",
                do=f"use a multiple of {stride}",
            )
        return cls(source, tokenizer.codebook_size, options)

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.source.skipped

    @property
    def digests(self) -> Mapping[str, str]:
        return image_digests(self.source)

    def leaked(self, calibrated: Manifest) -> Sequence[str]:
        return shared_names(self.names, calibrated)

    def measure(
        self, export: Path, folders: Mapping[str, Path], progress: Progress
    ) -> Measurements:
        from ..report.schema import HALF_PRECISION
        from .tokenizer import measure

        threads = self.options.threads
        codecs = {
            # A half-precision copy lies beside engines that no session runs.
            name: ImageTokenizer.open(folder, threads=threads)
            if name == ENGINE
            else ImageTokenizer.reference(folder, verify=name != HALF_PRECISION)
            for name, folder in folders.items()
        }
        accuracy, pictures = measure(
            validation_images(self.source, self.options),
            ImageTokenizer.reference(export),
            codecs,
            codebook_size=self.codebook_size,
            keep_images=KEPT_PICTURES,
            progress=lambda done: progress("validating images", done, len(self.names)),
        )
        latency: dict[Any, Any] = {}
        if ENGINE in codecs and self.options.rounds:
            latency = tokenizer_latency(
                ImageTokenizer.open(export, threads=threads),
                codecs[ENGINE],
                to_model(next(validation_images(self.source, self.options))[1]),
                self.options,
            )
        return Measurements(accuracy=accuracy, latency=latency, pictures=pictures)


@dataclass(frozen=True, slots=True)
class HeldOutFeeds:
    """Arrays for a user's own graphs."""

    feeds: CustomFeeds
    graphs: tuple[str, ...]
    options: ValidateOptions
    noun: str = "samples"

    @classmethod
    def open(cls, exported: Manifest, options: ValidateOptions) -> HeldOutFeeds:
        """Raises CalibrationError for feeds that are missing or do not fit."""
        feeds = open_feeds(
            exported,
            feeds=options.feeds,
            images=options.images,
            size=options.size,
            count=None,
            seed=None,
        )
        graphs = tuple(graph.name for graph in custom_graphs(exported))
        return cls(feeds, graphs, options)

    @property
    def names(self) -> tuple[str, ...]:
        return self.feeds.names

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.feeds.skipped

    @property
    def digests(self) -> Mapping[str, str]:
        return self.feeds.digests

    def leaked(self, calibrated: Manifest) -> Sequence[str]:
        return shared_names(self.names, calibrated)

    def measure(
        self, export: Path, folders: Mapping[str, Path], progress: Progress
    ) -> Measurements:
        from ..metrics.outputs import measure_outputs

        threads = self.options.threads
        chains = {
            name: GraphChain.open(folder, self.graphs, threads=threads)
            if name == ENGINE
            else GraphChain.open(folder, self.graphs, session=reference_session)
            for name, folder in folders.items()
        }
        outputs = measure_outputs(
            zip(self.names, self.feeds.samples(), strict=True),
            GraphChain.open(export, self.graphs, session=reference_session),
            chains,
            lambda done: progress("validating samples", done, len(self.names)),
        )
        latency: dict[Any, Any] = {}
        if ENGINE in chains and self.options.rounds:
            sample = next(self.feeds.samples())
            fp32 = GraphChain.open(export, self.graphs, threads=threads)
            pair = {
                "fp32": lambda: fp32.run(sample),
                "engine": lambda: chains[ENGINE].run(sample),
            }
            shape = next(iter(sample.values())).shape
            latency = {"total": timed(pair, shape, self.options)}
        return Measurements(outputs=outputs, latency=latency)


def shared_names(names: Sequence[str], calibrated: Manifest) -> list[str]:
    """Those that calibration has seen too."""
    return sorted(set(names) & set(facts(calibrated, CalibrationFacts).images))


def check_pictures(options: ValidateOptions) -> None:
    """Raises CalibrationError for what a generator cannot be validated on, whichever it is."""
    if options.feeds is not None:
        raise CalibrationError(
            "a generator is validated on pictures", where="--feeds", do="leave it out"
        )
    if options.images is not None:
        open_source(options.images)
    if options.features is not None and not Path(options.features).is_file():
        raise CalibrationError(
            "no such feature network",
            where=f"--features {options.features}",
            do="give an ONNX graph from pictures [N, 3, H, W] to features [N, D]",
        )


def validation_source(options: ValidateOptions) -> ImageSource:
    """Raises CalibrationError where no images are given."""
    if options.images is None:
        raise CalibrationError("no validation images", do="give --images DIR")
    return open_source(options.images, size=options.size)


def validation_images(
    source: ImageSource, options: ValidateOptions
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """A centre crop of each image, by file name."""
    for k, name in enumerate(source.names):
        yield name, center_crop(source.load(k), options.size)


def tokenizer_latency(
    fp32: ImageTokenizer,
    engine: ImageTokenizer,
    image: NDArray[np.float32],
    options: ValidateOptions,
) -> dict[str, Any]:
    """Encoder, decoder and both, FP32 and engine in turn."""
    tokens, latent = fp32.encode(image)
    fed = latent if tokens is None else tokens
    runs = {
        "encoder": {
            t: (lambda c=c: c.encode(image)) for t, c in (("fp32", fp32), ("engine", engine))
        },
        "decoder": {
            t: (lambda c=c: c.decode(fed)) for t, c in (("fp32", fp32), ("engine", engine))
        },
        "total": {
            t: (lambda c=c: (c.encode(image), c.decode(fed)))
            for t, c in (("fp32", fp32), ("engine", engine))
        },
    }
    return {what: timed(pair, image.shape, options) for what, pair in runs.items()}


def timed(
    pair: Mapping[str, Callable[[], object]], shape: tuple[int, ...], options: ValidateOptions
) -> Any:
    """The row of a report for FP32 and engine, timed in turn; `shape` is what they are fed."""
    from ..metrics.latency import interleaved, ratio
    from ..report.schema import LatencyRow

    found = interleaved(pair, warmup=options.warmup, rounds=options.rounds)
    return LatencyRow(
        fp32=found["fp32"],
        engine=found["engine"],
        speed=ratio(found["fp32"], found["engine"]),
        shape=tuple(shape),
        batch=int(shape[0]) if shape else 1,
        threads=options.threads,
    )
