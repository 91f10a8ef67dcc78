"""An image tokenizer measured on the centres of images, its halves timed one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...recipe.validate import ValidateOptions
from ...runtime.images import to_model
from ...runtime.tokenizer import ImageTokenizer
from ...samples.base import SampleSource
from ...samples.crops import Crops
from ...samples.sources import held_out_crops
from ...workspace.facts import Exported, tokenizer_of
from ..machine.watch import MachineLoad
from ..opinion.feeds import SAMPLES, Feeds, tokenizer_feeds
from ..quality.open import check_networks, network_digests
from ..quality.reconstruction import QualityMeter
from ..report.schema import ENGINE, HALF_PRECISION, QDQ, LatencyRow, Part
from .measurement import Folders, Measurements, Progress, timed, watch
from .tokenizer_accuracy import measure
from .tokenizer_sites import measure_sites

KEPT_PICTURES = 4
# The error at a site is of so many values that more images hardly move it.
SITE_IMAGES = 4


@dataclass(frozen=True, slots=True)
class TokenizerMeasurement:
    """Reconstructions of `crops` by FP32 and each candidate."""

    model: Exported
    crops: Crops
    options: ValidateOptions
    noun: str = "images"

    @classmethod
    def open(cls, model: Exported, options: ValidateOptions) -> TokenizerMeasurement:
        """Raises CalibrationError as `held_out_crops` does, and for a network that is not there."""
        check_networks(options)
        return cls(model, held_out_crops(model, options), options)

    @property
    def names(self) -> tuple[str, ...]:
        return self.crops.names

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        return (self.crops,)

    @property
    def digests(self) -> Mapping[str, str]:
        return {**self.crops.digests, **network_digests(self.options)}

    def run(self, folders: Folders, progress: Progress, device: str = "cpu") -> Measurements:
        export, threads = self.model.folder, self.options.threads
        open_placed = partial(
            ImageTokenizer.open,
            device=device,
            allow_fallback=self.options.allow_fallback,
            threads=threads,
        )
        codecs = {
            # A half-precision copy lies beside engines.
            name: open_placed(folder)
            if name == ENGINE
            else ImageTokenizer.reference(folder, verify=name != HALF_PRECISION)
            for name, folder in folders.items()
        }
        codebook_size = tokenizer_of(self.model.manifest).codebook_size
        meter = QualityMeter.open(tuple(codecs), self.options, codebook_size)
        accuracy, pictures = measure(
            zip(self.names, self.crops.crops(), strict=True),
            ImageTokenizer.reference(export),
            codecs,
            codebook_size=codebook_size,
            keep_images=KEPT_PICTURES,
            progress=lambda done: progress("validating images", done, len(self.names)),
            meter=meter,
        )
        for name, quality in meter.results().items():
            accuracy[name] = msgspec.structs.replace(accuracy[name], quality=quality)
        if QDQ in accuracy:
            chosen = [to_model(crop) for crop in islice(self.crops.crops(), SITE_IMAGES)]
            sites = measure_sites(
                export, folders[QDQ], chosen, partial(progress, "comparing sites")
            )
            accuracy[QDQ] = msgspec.structs.replace(
                accuracy[QDQ], sites=sites.decibels(), worst_sites=sites.worst()
            )
        latency: dict[Part, LatencyRow] = {}
        machine: MachineLoad | None = None
        if ENGINE in codecs and self.options.rounds:
            fp32 = open_placed(export)
            image = to_model(next(self.crops.crops()))
            with watch(device) as watched:
                latency = tokenizer_latency(fp32, codecs[ENGINE], image, self.options)
            machine = watched.found
        fallbacks = codecs[ENGINE].fallbacks if ENGINE in codecs else ()
        return Measurements(
            accuracy=accuracy,
            latency=latency,
            machine=machine,
            pictures=pictures,
            fallbacks=fallbacks,
            feeds=self._feeds(),
        )

    def _feeds(self) -> Feeds:
        """Return the first images, and their codes by FP32, for a second opinion."""
        if not self.options.second_opinion:
            return {}
        images = (to_model(crop) for crop in islice(self.crops.crops(), SAMPLES))
        return tokenizer_feeds(ImageTokenizer.reference(self.model.folder), images)


def tokenizer_latency(
    fp32: ImageTokenizer,
    engine: ImageTokenizer,
    image: NDArray[np.float32],
    options: ValidateOptions,
) -> dict[Part, LatencyRow]:
    """Time encoder, decoder and both, FP32 and engine in turn."""
    tokens, latent = fp32.encode(image)
    fed = latent if tokens is None else tokens

    def both(codec: ImageTokenizer) -> None:
        codec.encode(image)
        codec.decode(fed)

    parts: dict[Part, Callable[[ImageTokenizer], object]] = {
        "encoder": lambda codec: codec.encode(image),
        "decoder": lambda codec: codec.decode(fed),
        "total": both,
    }
    return {
        part: timed(
            {"fp32": partial(run, fp32), ENGINE: partial(run, engine)}, image.shape, options
        )
        for part, run in parts.items()
    }
