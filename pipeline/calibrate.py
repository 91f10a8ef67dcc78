"""Stage 2: images, arrays or generated tokens -> saved samples and streaming statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..artifacts import Manifest, Workspace, sha256_file
from ..errors import CalibrationError
from ..recipe import CalibrateOptions
from ..runtime.feeds import Sample, save_sample
from ..runtime.image_sources import ImageSource, noise_images, open_source, random_crops
from ..runtime.images import Uint8Image
from .common import (
    Reporter,
    StageResult,
    load_sites,
    package_versions,
    require_outputs,
    run_stage,
    tokenizer_of,
)
from .generated_samples import check_generated, generated_rows, is_generator
from .own_feeds import open_feeds, synthetic_feeds
from .own_inputs import is_own, require_batch


def calibrate_stage(
    workspace: Workspace, options: CalibrateOptions, reporter: Reporter
) -> StageResult:
    """Save samples, and collect ranges and squared sums of every site on them."""
    from ..calibrate.passes import collect_ranges
    from ..calibrate.statistics import Statistics, save_statistics
    from ..calibrate.view_passes import collect_full_ranges

    export, manifest = require_outputs(workspace, "export", stage="export")
    generates = is_generator(manifest)
    if options.labels and not generates:
        raise CalibrationError("only a generator takes labels", where="--labels", do="leave it out")
    if generates:
        source = generated(export, options, reporter)
    else:
        source = own_samples(manifest, options) if is_own(manifest) else crops(manifest, options)
    if source.skipped:
        reporter.warn(
            f"skipped {len(source.skipped)} unreadable files: {', '.join(source.skipped[:5])}"
        )
    wanted = Manifest(
        stage="calibrate",
        inputs={**manifest.outputs, **source.digests},
        options=msgspec.to_builtins(options)
        | {"images": list(source.names) if source.names else None}
        | ({"feeds": list(source.digests)} if options.feeds else {}),
        versions=package_versions("onnxruntime", "pillow", "numpy"),
    )

    def work(folder: Path) -> dict[str, object]:
        samples = folder / "samples"
        samples.mkdir()
        for k, sample in enumerate(source.samples):
            save_sample(sample, samples, k)
            if not generates:
                reporter.progress("samples", k + 1, options.samples)
        sites, size, progress = load_sites(export), options.batch_size, reporter.progress
        if generates:
            statistics: Statistics = {}
            for graph in sites.graphs:
                own = sites.of_graph(graph)
                statistics |= collect_full_ranges(
                    export, samples, own, batch_size=size, progress=progress
                )
        else:
            statistics = collect_ranges(export, samples, sites, batch_size=size, progress=progress)
        save_statistics(statistics, folder / "statistics.safetensors")
        return {
            "images": list(source.names),
            "skipped": list(source.skipped),
            "samples": options.samples,
            "synthetic": options.synthetic,
        }

    return run_stage(workspace.folder("calibrate"), wanted, work)


@dataclass(frozen=True, slots=True)
class Samples:
    """What is calibrated on: samples, made one at a time, and where they come from."""

    samples: Iterable[Sample]
    names: tuple[str, ...]
    digests: Mapping[str, str]
    skipped: tuple[str, ...] = ()


def generated(export: Path, options: CalibrateOptions, reporter: Reporter) -> Samples:
    """A generator's own pictures, as what its calibrated graphs are fed.

    Raises:
        CalibrationError: another source was asked for.
    """
    check_generated(options)
    name = f"generated from seed {options.seed}"
    return Samples(generated_rows(export, options, reporter), (name,), {})


def crops(manifest: Manifest, options: CalibrateOptions) -> Samples:
    """Square crops of images, or noise, for an image tokenizer.

    Raises:
        CalibrationError: no images, or a size that the tokenizer does not take.
    """
    if options.feeds is not None:
        raise CalibrationError(
            "an image tokenizer is calibrated on images", where="--feeds", do="give --images DIR"
        )
    stride = tokenizer_of(manifest)["stride"]
    if options.size % stride:
        raise CalibrationError(
            f"sample size {options.size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    source = calibration_source(options)
    names, skipped = ((), ()) if source is None else (source.names, source.skipped)
    return Samples(sample_images(source, options), names, image_digests(source), skipped)


def own_samples(manifest: Manifest, options: CalibrateOptions) -> Samples:
    """Arrays for a user's own graphs."""
    if options.synthetic:
        found = synthetic_feeds(
            manifest, count=options.samples, size=options.size, seed=options.seed
        )
        return Samples(found.samples(), (), {})
    found = open_feeds(
        manifest,
        feeds=options.feeds,
        images=options.images,
        size=options.size,
        count=options.samples,
        seed=options.seed,
    )
    require_batch(found.inputs, found.arrays, options.batch_size)
    return Samples(found.samples(), found.names, found.digests, found.skipped)


def calibration_source(options: CalibrateOptions) -> ImageSource | None:
    """The images to calibrate on; None for noise, which has to be asked for."""
    if options.synthetic:
        return None
    if options.images is None:
        raise CalibrationError(
            "no calibration images",
            do="give --images DIR (or --synthetic for noise, which stamps the report)",
        )
    return open_source(options.images)


def image_digests(source: ImageSource | None) -> dict[str, str]:
    return {} if source is None else {p.name: sha256_file(p) for p in source.files}


def sample_images(source: ImageSource | None, options: CalibrateOptions) -> Iterator[Uint8Image]:
    if source is None:
        return noise_images(options.samples, options.size, options.seed)
    return random_crops(source, options.samples, options.size, options.seed)
