"""The source of a stage's samples, chosen by its options and the kind of the model.

Calibration has one of `open_calibration`. Validation has `held_out_crops`, `held_out_arrays` or
`held_out_images`, by the model's kind, since each is measured in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from ..errors import CalibrationError
from ..graph.sites import load_sites
from ..recipe.calibrate import CalibrateOptions
from ..recipe.validate import ValidateOptions
from ..runtime.folders import read_spec
from ..runtime.generator import BATCH_SIZE
from ..runtime.labels import parse_labels
from ..runtime.spec import DECODER, GeneratorSpec
from ..workspace.facts import Exported, ModelKind, model_name, tokenizer_of
from .arrays import ArraySamples, noise_arrays, open_arrays
from .base import SampleSource, require_enough
from .classes import drawn_classes
from .crops import Crops, Noise
from .decoded import decoded_numbers
from .encoded import EncodedImages
from .generated import GeneratedSamples
from .images import ImageSource, open_source
from .inputs import check_pictures, require_batch
from .saved import SavedSamples


def check_options(kind: ModelKind, options: CalibrateOptions | ValidateOptions) -> None:
    """Check all that needs no exported model: what models of this kind take, and the images.

    Raises:
        CalibrationError: an option of other kinds of models, no images, or unusable ones.
    """
    if isinstance(options, CalibrateOptions) and options.samples_from is not None:
        return
    check_kind(kind, options)
    if kind == "tokenizer":
        tokenizer_images(options)
    elif kind == "generator" and options.images is not None:
        open_source(options.images)


def check_kind(kind: ModelKind, options: CalibrateOptions | ValidateOptions) -> None:
    """Raises CalibrationError for an option that models of this kind do not take."""
    refused: tuple[str, ...] = ("labels",)
    what, do = "only a generator takes {}", "leave it out"
    if kind == "generator":
        refused, what = ("feeds", "synthetic"), "a generator takes what it generates, or images"
        do = "leave it out; --labels says which classes"
    if kind == "custom":
        refused = ("labels", "features", "lpips", "dists")
        what = "only an image generator or tokenizer takes {}"
    for name in refused:
        if getattr(options, name, None):
            raise CalibrationError(what.format(name), where=f"--{name}", do=do)
    if kind == "tokenizer" and options.feeds is not None:
        raise CalibrationError(
            "an image tokenizer takes images", where="--feeds", do="give --images DIR"
        )


def open_calibration(model: Exported, options: CalibrateOptions, threads: int = 0) -> SampleSource:
    """Open what a model is calibrated on: of all samples, or of the shard that is asked for.

    Raises:
        CalibrationError: nothing to calibrate on, or what this model cannot be calibrated on.
        GenerationError: a label out of range.
    """
    if options.samples_from is not None:
        return SavedSamples.open(model, Path(options.samples_from))
    check_kind(model.kind, options)
    if model.kind == "generator":
        return generator_samples(model, options, threads)
    if model.kind == "custom":
        return array_samples(model, options)
    require_stride(model, options.size)
    images = tokenizer_images(options)
    if images is None:
        return Noise(options.size, shard_of(options), options.seed)
    return Crops(images, options.size, shard_of(options), options.seed)


def fewer_text(options: CalibrateOptions, source: SampleSource) -> str:
    """Return that there are fewer samples than are taken where nobody says how many; else ""."""
    if options.samples is not None or options.shard or options.dgc or options.samples_from:
        return ""
    if source.count >= options.count:
        return ""
    return f"calibrated on all {source.count} samples that are given, not on {options.count}"


def shard_of(options: CalibrateOptions, most: int | None = None) -> range:
    """Return the numbers of the samples that the shard makes, of `most` that there are.

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


def generator_samples(model: Exported, options: CalibrateOptions, threads: int) -> SampleSource:
    """Open images for a generator's tokenizer, or what it generates itself."""
    _, spec = read_spec(model.folder)
    decodes = DECODER in load_sites(model.folder).graphs
    if options.images is not None:
        images = open_source(options.images)
        if not options.dgc:  # which needs more candidates than samples, and checks that itself
            require_enough(len(images.files), options.samples, options.images)
        part = shard_of(options, len(images.files))
        return EncodedImages.open(
            model.folder,
            spec,
            images,
            options.labels,
            part,
            options.seed,
            threads,
            decoded_numbers(min(len(images.files), options.pool), part) if decodes else (),
        )
    labels = generated_labels(spec, options.labels, options.pool, options.seed)
    part = shard_of(options)
    return GeneratedSamples(
        model.folder,
        spec,
        labels[part.start : part.stop],
        options.seed,
        first=part.start,
        threads=threads,
        are_drawn=options.labels is None,
        decoded=decoded_numbers(options.pool, part) if decodes else (),
    )


def generated_labels(
    spec: GeneratorSpec, labels: str | None, count: int, seed: int, seen: Collection[int] = ()
) -> tuple[int, ...]:
    """Return the given classes in turn, or draw all as often, those first that were not `seen`.

    Raises:
        GenerationError: a label out of range.
    """
    if labels is None:
        return tuple(drawn_classes(spec.num_classes, count, seed, seen))
    return tuple(islice(cycle(parse_labels([labels], spec.num_classes)), count))


def array_samples(model: Exported, options: CalibrateOptions) -> ArraySamples:
    """Open arrays or images for a user's own graphs, or draw noise that was asked for."""
    if options.synthetic:
        found = noise_arrays(
            model.manifest, count=options.count, size=options.size, seed=options.seed
        )
        return replace(found, part=shard_of(options))
    found = open_arrays(
        model.manifest,
        feeds=options.feeds,
        images=options.images,
        size=options.size,
        count=options.samples,
        seed=options.seed,
        most=options.count,
    )
    check_pictures(found.arrays, found.inputs, options.feeds or "", options.value_range)
    require_batch(found.inputs, found.arrays, options.batch_size)
    return replace(found, part=shard_of(options, found.count))


def held_out_arrays(model: Exported, options: ValidateOptions) -> ArraySamples:
    """Open the arrays or images that a user's own graphs are validated on: all, or the first.

    Raises:
        CalibrationError: they are missing or do not fit.
    """
    check_kind("custom", options)
    return open_arrays(
        model.manifest,
        feeds=options.feeds,
        images=options.images,
        size=options.size,
        count=options.samples,
        seed=None,
    )


def held_out_crops(model: Exported, options: ValidateOptions) -> Crops:
    """Open the images whose centres an image tokenizer is validated on.

    Raises:
        CalibrationError: there are none, or a size that the tokenizer does not take.
    """
    check_kind("tokenizer", options)
    images = tokenizer_images(options)
    assert images is not None  # noise is for calibration alone
    require_stride(model, options.size)
    return Crops(images, options.size, range(len(images.files)))


def held_out_images(
    model: Exported, options: ValidateOptions, seen: Collection[int] = ()
) -> tuple[GeneratedSamples, EncodedImages | None]:
    """Open what a generator makes in validation, and the user's images if its graphs get those.

    `seen` are classes that calibration has seen.

    Raises:
        CalibrationError: images that cannot be used or have no classes.
        GenerationError: a label out of range.
    """
    check_kind("generator", options)
    images = None if options.images is None else open_source(options.images)
    _, spec = read_spec(model.folder)
    if spec.recording is not None and images is not None:
        raise CalibrationError(
            f"{model_name(model.manifest)} is validated along its own trajectory",
            where="--images",
            do="leave it out",
        )
    seed, threads = options.seed, options.threads
    labels = generated_labels(spec, options.labels, options.generated, seed, seen)
    generated = GeneratedSamples(
        model.folder, spec, labels, seed, batch_size=options.batch_size, threads=threads
    )
    if images is None:
        return generated, None
    part = range(len(images.files))
    return generated, EncodedImages.open(
        model.folder, spec, images, options.labels, part, seed, threads
    )


def tokenizer_images(options: CalibrateOptions | ValidateOptions) -> ImageSource | None:
    """Open the images for an image tokenizer; None for noise, which has to be asked for.

    Raises:
        CalibrationError: neither is given, or the images cannot be used.
    """
    most = options.samples
    if isinstance(options, CalibrateOptions):
        if options.synthetic:
            return None
        most, stage = options.count, "calibration"
        do = "give --images DIR (or --synthetic for noise, which stamps the report)"
    else:
        stage, do = "validation", "give --images DIR"
    if options.images is None:
        raise CalibrationError(f"no {stage} images", do=do)
    found = open_source(options.images, size=options.size, most=most)
    if isinstance(options, ValidateOptions):  # of whose images the centre is taken once
        require_enough(len(found.files), most, options.images)
    return found


def require_stride(model: Exported, size: int) -> None:
    """Raises CalibrationError for a size that the tokenizer does not take."""
    tokenizer = tokenizer_of(model.manifest)
    stride, only = tokenizer.stride, tokenizer.image_size
    if only not in (None, size):
        raise CalibrationError(
            f"sample size {size} is not the {only} of this tokenizer's images", do=f"--size {only}"
        )
    if size % stride:
        raise CalibrationError(
            f"sample size {size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
