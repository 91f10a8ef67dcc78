"""Samples of an earlier calibration, used again, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ..errors import CalibrationError
from ..runtime.folders import read_spec
from ..runtime.images import UnreadableImage, load_image
from ..runtime.recording import Recording
from ..runtime.spec import DECODER, TEACHER_FORCED, GeneratorSpec
from ..workspace.facts import Exported, kind_of, tokenizer_of
from ..workspace.files import UNDECODABLE, sha256_file
from ..workspace.manifest import MANIFEST, Manifest
from .base import Progress, SampleSource, reported
from .files import (
    DECODER_SAMPLES,
    Array,
    GraphRun,
    Sample,
    graph_of,
    load_sample,
    sample_files,
    sample_labels,
)
from .inputs import GraphInput, check_arrays, check_names, needed_inputs, require_fed


@dataclass(frozen=True, slots=True)
class SavedSamples(SampleSource):
    """Files of an earlier calibration, all of them; of `graphs` they may be runs.

    What their inputs were called, and whether they are noise, is what that calibration said.
    """

    files: tuple[Path, ...]
    origin: Origin
    graphs: tuple[str, ...]
    decoded: tuple[Path, ...] = ()

    @classmethod
    def open(cls, model: Exported, given: Path) -> SavedSamples:
        """Raises CalibrationError as `open_saved` does."""
        files = open_saved(model.folder, model.manifest, given)
        graphs = recorded_graphs(model.folder, model.manifest)
        decoded = open_decoded(model, sample_folder(given).parent / DECODER_SAMPLES)
        return cls(tuple(files), origin_of(given), graphs, decoded)

    @property
    def names(self) -> tuple[str, ...]:
        return self.origin.images

    @property
    def digests(self) -> Mapping[str, str]:
        of_model = {f"sample/{path.name}": sha256_file(path) for path in self.files}
        return of_model | {f"decoder/{path.name}": sha256_file(path) for path in self.decoded}

    @property
    def synthetic(self) -> bool:
        return self.origin.synthetic

    @property
    def count(self) -> int:
        return len(self.files)

    @property
    def sample_names(self) -> tuple[str, ...]:
        known = sample_labels(self.files[0].parent)
        return tuple(known.get(path.name, path.name) for path in self.files) if known else ()

    def samples(self, progress: Progress) -> Iterator[Sample]:
        loaded = (saved_sample(path, self.graphs) for path in self.files)
        yield from reported(loaded, self.count, progress)
        yield from (GraphRun(DECODER, load_sample(path)) for path in self.decoded)


def open_decoded(model: Exported, folder: Path) -> tuple[Path, ...]:
    """Return the saved samples of a generator's image decoder, of which earlier versions made none.

    Raises:
        CalibrationError: one does not fit the decoder; names it.
    """
    if model.kind != "generator" or not folder.is_dir():
        return ()
    files = sample_files(folder)
    inputs = graph_inputs(model.folder, DECODER)
    for path in files:
        check_file(path, inputs)
    return tuple(files)


def sample_folder(given: Path) -> Path:
    """Return the samples of a workspace or of its calibrate folder, else the folder itself."""
    for folder in (given / "calibrate" / "samples", given / "samples"):
        if folder.is_dir():
            return folder
    return given


def open_saved(export: Path, exported: Manifest, given: Path) -> list[Path]:
    """Return the files in their order, each read once.

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
    kind = kind_of(exported)
    if kind == "generator":
        check_rows(files, export, folder)
    elif kind == "custom":
        for path in files:
            check_file(path, needed_inputs(exported))
    else:
        for path in files:
            check_picture(path, tokenizer_of(exported).stride)
    return files


def check_rows(files: Sequence[Path], export: Path, folder: Path) -> None:
    """Check rows of the graph of all positions, or runs along a trajectory.

    Raises:
        CalibrationError: one does not fit the generator; names the file.
    """
    _, spec = read_spec(export)
    if spec.recording is not None:
        check_runs(files, export, spec, spec.recording, folder)
        return
    inputs = graph_inputs(export, TEACHER_FORCED)
    for path in files:
        check_labels(check_file(path, inputs), spec, path)


def check_labels(arrays: Mapping[str, Array], spec: GeneratorSpec, path: Path) -> None:
    """Raises CalibrationError for a label that is neither a class nor the null class."""
    odd = [v for v in map(int, arrays["labels"].flat) if not 0 <= v <= spec.num_classes]
    if odd:
        raise CalibrationError(
            f"label {odd[0]}, but the classes are 0 to {spec.num_classes - 1} and the null class",
            where=str(path),
            do="these are samples of another model",
        )


def check_runs(
    files: Sequence[Path],
    export: Path,
    spec: GeneratorSpec,
    recording: Recording,
    folder: Path,
) -> None:
    """Check runs along a trajectory: of every graph, each with what that graph takes.

    Raises:
        CalibrationError: they are not, or a value is out of range; names the file.
    """
    inputs = {graph: graph_inputs(export, graph) for graph in recording.graphs}
    lacking = set(inputs) - {graph_of(path) for path in files}
    do = "name what `arvg-trt calibrate` saved of this model"
    if lacking:
        raise CalibrationError(f"has no run of {min(lacking)}.onnx", where=str(folder), do=do)
    for path in files:
        graph = graph_of(path)
        if graph not in inputs:
            raise CalibrationError(
                f"is no run of {' or '.join(recording.graphs)}", where=str(path), do=do
            )
        has_labels = graph == recording.graphs[0]
        arrays = check_file(path, inputs[graph], alike=has_labels)
        if has_labels:
            check_labels(arrays, spec, path)
        recording.check(graph, arrays, path)


def graph_inputs(export: Path, graph: str) -> tuple[GraphInput, ...]:
    """Return the inputs of a generator's graph."""
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
    """Read and check a sample; a picture feeds the one image input that is left.

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


def recorded_graphs(export: Path, exported: Manifest) -> tuple[str, ...]:
    """Return the graphs whose runs are samples of a model; of most there are none."""
    if kind_of(exported) != "generator":
        return ()
    recording = read_spec(export)[1].recording
    return () if recording is None else recording.graphs


def saved_sample(path: Path, graphs: Collection[str] = ()) -> Sample:
    """Load a picture, arrays, or of one of `graphs` a run."""
    if path.suffix == ".png":
        return saved_picture(path)
    graph = graph_of(path)
    arrays = load_sample(path)
    return arrays if graph is None or graph not in graphs else GraphRun(graph, arrays)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of an earlier calibration: their names, and whether they were noise."""

    images: tuple[str, ...]
    synthetic: bool = False


def origin_of(given: Path) -> Origin:
    """Return what the manifest beside the samples says, or of other folders the folder's name."""
    path = sample_folder(given).parent / MANIFEST
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Manifest).results
        return msgspec.convert(results, Origin)
    except (OSError, *UNDECODABLE):
        return Origin(images=(f"saved samples of {given.name}",))
