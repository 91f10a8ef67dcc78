"""Samples of an earlier calibration, used again, and whether they fit the model."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from ..artifacts import MANIFEST, Manifest
from ..errors import CalibrationError
from ..runtime.feeds import Sample, load_sample, sample_files
from ..runtime.generator import FULL, read_spec
from ..runtime.images import UnreadableImage, load_image
from .common import tokenizer_of
from .generated_samples import is_generator, require_teacher_forced
from .own_inputs import (
    GraphInput,
    check_arrays,
    check_names,
    is_own,
    needed_inputs,
    require_fed,
)


def sample_folder(given: Path) -> Path:
    """Of a workspace or its calibrate folder the samples; else the folder itself."""
    for folder in (given / "calibrate" / "samples", given / "samples"):
        if folder.is_dir():
            return folder
    return given


def open_saved(export: Path, exported: Manifest, given: Path) -> list[Path]:
    """Files in their order, each read once.

    Raises:
        CalibrationError: none there, or one that is damaged or of another model; names it.
    """
    folder = sample_folder(given)
    files = sample_files(folder) if folder.is_dir() else []
    if not files:
        raise CalibrationError(
            "holds no saved samples",
            where=str(given),
            do="--samples-from takes a workspace, or a folder that `arvg-trt calibrate` wrote",
        )
    if is_generator(exported):
        require_teacher_forced(exported)
        inputs, classes = full_inputs(export), read_spec(export)[1].num_classes
        for path in files:
            arrays = check_file(path, inputs)
            label = int(np.asarray(arrays["labels"]).flat[0])
            if not 0 <= label <= classes:
                raise CalibrationError(
                    f"label {label}, but the classes are 0 to {classes - 1} and the null class",
                    where=str(path),
                    do="these are samples of another model",
                )
    elif is_own(exported):
        for path in files:
            check_file(path, needed_inputs(exported))
    else:
        for path in files:
            check_picture(path, tokenizer_of(exported)["stride"])
    return files


def full_inputs(export: Path) -> tuple[GraphInput, ...]:
    """What a generator's full graph takes."""
    from ..calibrate.observers import load_graph

    values = load_graph(export / f"{FULL}.onnx").graph.inputs
    found = []
    for value in values:
        assert value.shape is not None and value.dtype is not None
        shape = tuple(d if isinstance(d, int) else None for d in value.shape)
        found.append(GraphInput(FULL, str(value.name), value.dtype.numpy(), shape))
    return tuple(found)


def check_file(path: Path, inputs: tuple[GraphInput, ...]) -> dict[str, np.ndarray]:
    """The arrays of a sample; a picture feeds the one image input that is left."""
    picture = path.suffix == ".png"
    if picture and not any(needed.is_image for needed in inputs):
        raise CalibrationError(
            "is a picture, which no input takes",
            where=str(path),
            do="name a folder of samples that were calibrated on",
        )
    arrays = load_sample(path, ())
    check_names(arrays, inputs, str(path))
    require_fed(inputs, arrays, str(path), with_images=picture)
    check_arrays(arrays, inputs, str(path))
    return arrays


def check_picture(path: Path, stride: int) -> None:
    """Raises CalibrationError for what is no picture, or of a size that the stride leaves over."""
    if path.suffix != ".png":
        raise CalibrationError(
            "is no picture, which an image tokenizer is calibrated on", where=str(path)
        )
    height, width = saved_picture(path).shape[:2]
    if height % stride or width % stride:
        raise CalibrationError(
            f"has {width}x{height} pixels, not multiples of the stride {stride}", where=str(path)
        )


def saved_picture(path: Path) -> np.ndarray:
    try:
        return load_image(path)
    except UnreadableImage as error:
        raise CalibrationError(f"cannot be read ({error})", where=str(path)) from error


def saved_sample(path: Path) -> Sample:
    return saved_picture(path) if path.suffix == ".png" else load_sample(path)


def sample_names(given: Path) -> tuple[tuple[str, ...], bool]:
    """What reports call the samples, and whether they are noise: as the folder's manifest says."""
    path = sample_folder(given).parent / MANIFEST
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Manifest).results
        return tuple(results["images"]), bool(results["synthetic"])
    except (OSError, msgspec.ValidationError, msgspec.DecodeError, KeyError):
        return (f"saved samples of {given.name}",), False
