"""Samples of an earlier calibration, used again, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..errors import CalibrationError
from ..families.mar.spec import MarSpec
from ..families.mar.trajectory import GRAPHS
from ..runtime.generator import FULL, Spec, read_spec
from ..runtime.images import UnreadableImage, load_image
from ..runtime.spec import TIMES
from ..workspace.artifacts import MANIFEST, Manifest
from ..workspace.facts import tokenizer_of
from .files import Array, GraphRun, Sample, graph_of, load_sample, sample_files
from .generated import is_generator
from .inputs import GraphInput, check_arrays, check_names, is_own, needed_inputs, require_fed


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
        _, spec = read_spec(export)
        if isinstance(spec, MarSpec):
            check_runs(files, export, spec, folder)
            return files
        inputs = graph_inputs(export, FULL)
        for path in files:
            check_labels(check_file(path, inputs), spec, path)
    elif is_own(exported):
        for path in files:
            check_file(path, needed_inputs(exported))
    else:
        for path in files:
            check_picture(path, tokenizer_of(exported)["stride"])
    return files


def check_labels(arrays: Mapping[str, Array], spec: Spec, path: Path) -> None:
    """Raises CalibrationError for a label that is neither a class nor the null class."""
    odd = [v for v in map(int, arrays["labels"].flat) if not 0 <= v <= spec.num_classes]
    if odd:
        raise CalibrationError(
            f"label {odd[0]}, but the classes are 0 to {spec.num_classes - 1} and the null class",
            where=str(path),
            do="these are samples of another model",
        )


def check_runs(files: Sequence[Path], export: Path, spec: MarSpec, folder: Path) -> None:
    """Runs along a MAR's trajectory: of every graph, each with what that graph takes.

    Raises:
        CalibrationError: they are not, or a value is out of range; names the file.
    """
    inputs = {graph: graph_inputs(export, graph) for graph in GRAPHS}
    lacking = set(inputs) - {graph_of(path) for path in files}
    if lacking:
        raise CalibrationError(
            f"has no run of {min(lacking)}.onnx",
            where=str(folder),
            do="name what `arvg-trt calibrate` saved of a MAR",
        )
    for path in files:
        graph = graph_of(path)
        if graph not in inputs:
            raise CalibrationError(
                f"is no run of {' or '.join(GRAPHS)}",
                where=str(path),
                do="name what `arvg-trt calibrate` saved of a MAR",
            )
        arrays = check_file(path, inputs[graph], alike=graph == "pass")
        if graph == "pass":
            check_labels(arrays, spec, path)
            check_places(arrays, spec, path)
        elif not 0 <= int(arrays["time"][0]) < TIMES:
            raise CalibrationError(
                f"time {arrays['time'][0]}, but those of the diffusion are 0 to {TIMES - 1}",
                where=str(path),
            )


def check_places(arrays: Mapping[str, Array], spec: MarSpec, path: Path) -> None:
    """Raises CalibrationError for orders that are none, or without an unknown token."""
    orders, known = arrays["position_ids"], arrays["tokens"].shape[1]
    if not np.array_equal(
        np.sort(orders, axis=1), np.tile(np.arange(spec.length), (len(orders), 1))
    ):
        raise CalibrationError(
            f"position_ids are no orders of the {spec.length} tokens", where=str(path)
        )
    if known >= spec.length:
        raise CalibrationError(f"all {known} tokens are known", where=str(path))


def graph_inputs(export: Path, graph: str) -> tuple[GraphInput, ...]:
    """What a generator's graph takes."""
    from ..graph.io import load_graph

    values = load_graph(export / f"{graph}.onnx").graph.inputs
    found = []
    for value in values:
        assert value.shape is not None and value.dtype is not None
        shape = tuple(d if isinstance(d, int) else None for d in value.shape)
        found.append(GraphInput(graph, str(value.name), value.dtype.numpy(), shape))
    return tuple(found)


def check_file(
    path: Path, inputs: tuple[GraphInput, ...], *, alike: bool = True
) -> dict[str, np.ndarray]:
    """The arrays of a sample; a picture feeds the one image input that is left.

    Arrays that are `alike` have as many rows.
    """
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
    for together in (inputs,) if alike else ((one,) for one in inputs):
        check_arrays(arrays, together, str(path))
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
    if path.suffix == ".png":
        return saved_picture(path)
    graph = graph_of(path)
    return GraphRun(graph, load_sample(path)) if graph in GRAPHS else load_sample(path)


def sample_names(given: Path) -> tuple[tuple[str, ...], bool]:
    """What reports call the samples, and whether they are noise: as the folder's manifest says."""
    path = sample_folder(given).parent / MANIFEST
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Manifest).results
        return tuple(results["images"]), bool(results["synthetic"])
    except (OSError, msgspec.ValidationError, msgspec.DecodeError, KeyError):
        return (f"saved samples of {given.name}",), False
