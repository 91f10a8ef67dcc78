"""What a model is calibrated on: its own pictures, crops of images, arrays, or noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CalibrationError
from ..recipe.options import CalibrateOptions
from ..runtime.generator import BATCH_SIZE
from ..runtime.images import Uint8Image
from ..workspace.facts import kind_of, tokenizer_of
from ..workspace.files import sha256_file
from ..workspace.manifest import Manifest
from ..workspace.stage import Reporter
from .arrays import open_feeds, synthetic_feeds
from .files import Sample, sample_labels
from .generated import check_generated, encoded_rows, generated_rows, picture_labels, pictures_of
from .images import ImageSource, noise_images, open_source, random_crops
from .inputs import check_pictures, require_batch
from .saved import open_saved, recorded_graphs, sample_names, saved_sample


@dataclass(frozen=True, slots=True)
class Samples:
    """What is calibrated on: samples, made one at a time, and where they come from.

    `count` is their number where it is not the one that was asked for. `classes` are those of the
    pictures that a generator makes, where they were drawn; `labels` what the user calls each
    sample, where that is known.
    """

    samples: Iterable[Sample]
    names: tuple[str, ...]
    digests: Mapping[str, str]
    skipped: tuple[str, ...] = ()
    count: int | None = None
    synthetic: bool = False
    classes: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()


def open_samples(
    export: Path,
    manifest: Manifest,
    options: CalibrateOptions,
    reporter: Reporter,
    threads: int = 0,
) -> Samples:
    """What `options` ask for, or their shard of it; everything is checked before this returns.

    Raises:
        CalibrationError: nothing to calibrate on, or what this model cannot be calibrated on.
    """
    if options.samples_from is not None:
        return saved_samples(export, manifest, options)
    kind = kind_of(manifest)
    if kind == "generator":
        return generated(export, options, reporter, threads)
    if options.labels:
        raise CalibrationError("only a generator takes labels", where="--labels", do="leave it out")
    return own_samples(manifest, options) if kind == "custom" else crops(manifest, options)


def shard_of(options: CalibrateOptions, most: int | None = None) -> range:
    """Numbers of the samples that the shard makes, of `most` that there are.

    Cut between batches where there are enough, so that the shards together compute what one run
    does, to the bit.
    """
    k, n = options.part
    total = options.pool if most is None else min(most, options.pool)
    unit = math.lcm(BATCH_SIZE, options.batch_size)
    unit = unit if total >= n * unit else 1
    units = math.ceil(total / unit)
    first, end = (min(total, unit * (units * part // n)) for part in (k - 1, k))
    return range(first, end)


def saved_samples(export: Path, manifest: Manifest, options: CalibrateOptions) -> Samples:
    """Those of an earlier calibration, as they are."""
    assert options.samples_from is not None
    files = open_saved(export, manifest, Path(options.samples_from))
    digests = {f"sample/{path.name}": sha256_file(path) for path in files}
    names, synthetic = sample_names(Path(options.samples_from))
    graphs = recorded_graphs(export, manifest)
    samples = (saved_sample(path, graphs) for path in files)
    known = sample_labels(files[0].parent)
    labels = tuple(known.get(path.name, path.name) for path in files) if known else ()
    return Samples(samples, names, digests, count=len(files), synthetic=synthetic, labels=labels)


def generated(export: Path, options: CalibrateOptions, reporter: Reporter, threads: int) -> Samples:
    """A generator's own pictures, or images through its tokenizer, as its graphs are fed them.

    Raises:
        CalibrationError: another source was asked for, or images that cannot be used.
    """
    check_generated(options)
    part = shard_of(options)
    if options.images is not None:
        source = open_source(options.images)
        part = shard_of(options, len(source.files))
        rows = encoded_rows(export, source, options, part=part, threads=threads)
        return Samples(rows, source.names, image_digests(source), source.skipped, len(part))
    made = generated_rows(export, options, reporter, part=part, threads=threads)
    labels = picture_labels(export, options)[part.start : part.stop]
    drawn = tuple(labels) if options.labels is None else ()
    return Samples(made, (pictures_of(options.seed),), {}, classes=drawn)


def crops(manifest: Manifest, options: CalibrateOptions) -> Samples:
    """Square crops of images, or noise, for an image tokenizer.

    Raises:
        CalibrationError: no images, or a size that the tokenizer does not take.
    """
    if options.feeds is not None:
        raise CalibrationError(
            "an image tokenizer is calibrated on images", where="--feeds", do="give --images DIR"
        )
    stride = tokenizer_of(manifest).stride
    if options.size % stride:
        raise CalibrationError(
            f"sample size {options.size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    source = calibration_source(options)
    names, skipped = ((), ()) if source is None else (source.names, source.skipped)
    labels = tuple(names[k % len(names)] for k in shard_of(options)) if names else ()
    digests = image_digests(source)
    return Samples(sample_images(source, options), names, digests, skipped, labels=labels)


def own_samples(manifest: Manifest, options: CalibrateOptions) -> Samples:
    """Arrays for a user's own graphs."""
    if options.synthetic:
        found = synthetic_feeds(
            manifest, count=options.samples, size=options.size, seed=options.seed
        )
        part = shard_of(options)
        labels = found.names[part.start : part.stop]
        return Samples(found.samples(part), (), {}, labels=labels)
    found = open_feeds(
        manifest,
        feeds=options.feeds,
        images=options.images,
        size=options.size,
        count=options.samples,
        seed=options.seed,
    )
    check_pictures(found.arrays, found.inputs, options.feeds or "", options.value_range)
    require_batch(found.inputs, found.arrays, options.batch_size)
    part = shard_of(options)
    names = found.names[part.start : part.stop]
    return Samples(found.samples(part), names, found.digests, found.skipped, labels=names)


def calibration_source(options: CalibrateOptions) -> ImageSource | None:
    """The images to calibrate on; None for noise, which has to be asked for."""
    if options.synthetic:
        return None
    if options.images is None:
        raise CalibrationError(
            "no calibration images",
            do="give --images DIR (or --synthetic for noise, which stamps the report)",
        )
    return open_source(options.images, size=options.size, most=options.samples)


def image_digests(source: ImageSource | None) -> dict[str, str]:
    if source is None:
        return {}
    return {n: sha256_file(p) for n, p in zip(source.names, source.files, strict=True)}


def sample_images(source: ImageSource | None, options: CalibrateOptions) -> Iterator[Uint8Image]:
    part = shard_of(options)
    if source is None:
        return noise_images(part.stop, options.size, options.seed, part.start)
    return random_crops(source, part.stop, options.size, options.seed, part.start)
