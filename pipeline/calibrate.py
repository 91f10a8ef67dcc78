"""Stage 2: images -> saved samples and streaming statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..artifacts import Manifest, Workspace, sha256_file
from ..errors import CalibrationError
from ..recipe import CalibrateOptions
from ..runtime.image_sources import ImageSource, noise_images, open_source, random_crops
from ..runtime.images import Uint8Image, save_image
from .common import Reporter, StageResult, load_sites, package_versions, require_outputs, run_stage


def calibrate_stage(
    workspace: Workspace, options: CalibrateOptions, reporter: Reporter
) -> StageResult:
    """Cut samples, save them, and collect ranges and squared sums of every site."""
    from ..calibrate.passes import collect_ranges
    from ..calibrate.statistics import save_statistics

    export, manifest = require_outputs(workspace, "export", stage="export")
    stride = manifest.results["tokenizer"]["stride"]
    if options.size % stride:
        raise CalibrationError(
            f"sample size {options.size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    source = calibration_source(options)
    if source is not None and source.skipped:
        reporter.warn(
            f"skipped {len(source.skipped)} unreadable files: {', '.join(source.skipped[:5])}"
        )
    wanted = Manifest(
        stage="calibrate",
        inputs={**manifest.outputs, **image_digests(source)},
        options=msgspec.to_builtins(options) | {"images": list(source.names) if source else None},
        versions=package_versions("onnxruntime", "pillow", "numpy"),
    )

    def work(folder: Path) -> dict[str, object]:
        samples = folder / "samples"
        samples.mkdir()
        for k, image in enumerate(sample_images(source, options)):
            save_image(image, samples / f"{k:05d}.png")
            reporter.progress("samples", k + 1, options.samples)
        statistics = collect_ranges(
            export,
            samples,
            load_sites(export),
            batch_size=options.batch_size,
            progress=reporter.progress,
        )
        save_statistics(statistics, folder / "statistics.safetensors")
        return {
            "images": list(source.names) if source else [],
            "skipped": list(source.skipped) if source else [],
            "samples": options.samples,
            "synthetic": options.synthetic,
        }

    return run_stage(workspace.folder("calibrate"), wanted, work)


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
