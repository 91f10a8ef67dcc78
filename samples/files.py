"""Samples on disk, and what each of several graphs is fed with them.

A sample is a PNG, which is fed to the input `image`, or a `.safetensors` with the arrays of one
run by input name. Graphs run in a given order: an output of one feeds a later one's input of the
same name; `GRAPH/INPUT` names an array for one graph alone. A `.GRAPH.safetensors` has the arrays
of one run of that graph, which others are not fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..errors import BundleError, CalibrationError
from ..runtime.images import Uint8Image, load_image, save_image, to_model
from ..runtime.recording import GraphRun as GraphRun
from ..runtime.sessions.open import fast_session, has_graph
from ..runtime.sessions.session import Session
from ..workspace.files import UNDECODABLE

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

TOKENIZER_GRAPHS = ("encoder", "decoder")
# The folders of a calibration's samples: of the model, and of a generator's image decoder.
SAMPLES, DECODER_SAMPLES = "samples", "decoder-samples"
SUFFIXES = (".png", ".safetensors")
IMAGE = "image"
LABELS = "names.json"


Sample = Uint8Image | dict[str, Array] | GraphRun


def save_sample(sample: Sample, folder: Path, number: int) -> Path:
    """Write an image as PNG, arrays (batch axis of length 1 but in a run) as safetensors.

    Returns the file.
    """
    if isinstance(sample, np.ndarray):
        path = folder / f"{number:05d}.png"
        save_image(sample, path)
        return path
    arrays: Arrays = sample.feeds if isinstance(sample, GraphRun) else sample
    kind = f".{sample.graph}" if isinstance(sample, GraphRun) else ""
    path = folder / f"{number:05d}{kind}.safetensors"
    # Not ascontiguousarray, which gives a scalar an axis.
    path.write_bytes(save({k: np.asarray(v, order="C") for k, v in arrays.items()}))
    return path


def save_labels(folder: Path, labels: Mapping[str, str]) -> None:
    """Write the user's name of each saved sample by file name: `feeds:0`, `photo.jpg`."""
    (folder / LABELS).write_bytes(msgspec.json.encode(dict(labels)))


def sample_labels(folder: Path) -> dict[str, str]:
    """Read what `save_labels` wrote; nothing for samples that were saved without."""
    path = folder / LABELS
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, *UNDECODABLE) as error:
        raise CalibrationError(
            f"cannot be read: {error}", where=str(path), do="run `arvg-trt calibrate` again"
        ) from error


def sample_files(folder: Path, graph: str | None = None) -> list[Path]:
    """Return saved samples in their order: all, or those that `graph` is fed."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    return [path for path in files if graph is None or graph_of(path) in (None, graph)]


def graph_of(path: Path) -> str | None:
    """Return the graph that a sample is a run of, None for one of all graphs."""
    return path.name.split(".", 1)[1].rpartition(".")[0] or None


def load_sample(path: Path, inputs: Collection[str] = (IMAGE,)) -> dict[str, Array]:
    """Read the arrays of a sample by input; a picture is not decoded where no input takes it.

    Raises:
        CalibrationError: the file is damaged.
    """
    if path.suffix == ".png":
        return {IMAGE: to_model(load_image(path))} if IMAGE in inputs else {}
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CalibrationError(
            f"cannot be read: {error}", where=str(path), do="run `arvg-trt calibrate` again"
        ) from error


def sample_batches(
    files: Sequence[Path], size: int, inputs: Collection[str] = (IMAGE,)
) -> Iterator[tuple[list[str], dict[str, Array]]]:
    """Yield file names and arrays of at most `size` samples, joined along axis 0.

    One batch is in memory. `inputs` are those of the graph that is fed. A run of a graph is a batch
    as it is.

    Raises:
        CalibrationError: samples of one batch that differ in shape.
    """
    size = batch_length(files, size)
    for start in range(0, len(files), size):
        group = files[start : start + size]
        samples = [load_sample(path, inputs) for path in group]
        names = [path.name for path in group]
        try:
            joined = samples[0]
            if len(samples) > 1:
                joined = {k: np.concatenate([s[k] for s in samples]) for k in joined}
        except ValueError as error:
            raise CalibrationError(
                f"samples of different shapes cannot share a batch: {error}",
                where=names[0],
                do="calibrate with --batch-size 1",
            ) from error
        yield names, joined


def batch_length(files: Sequence[Path], size: int) -> int:
    """Return the samples of a batch: one where they are runs of a graph."""
    return 1 if any(graph_of(path) for path in files) else size


def count_batches(files: Sequence[Path], size: int) -> int:
    return math.ceil(len(files) / batch_length(files, size))


def feeds_of(
    graph: str, inputs: Iterable[str], arrays: Arrays, carried: Arrays
) -> dict[str, Array]:
    """Return a graph's feeds: `GRAPH/INPUT`, else an earlier graph's output, else `INPUT`.

    Raises:
        CalibrationError: nothing feeds an input.
    """
    feeds: dict[str, Array] = {}
    for name in inputs:
        found = arrays.get(f"{graph}/{name}", carried.get(name, arrays.get(name)))
        if found is None:
            raise CalibrationError(
                f"nothing feeds the input {name} of the {graph} graph", do="add it to the feeds"
            )
        feeds[name] = found
    return feeds


class GraphChain:
    """Sessions of one folder's graphs, run one after the other."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.sessions = dict(sessions)

    @classmethod
    def open(
        cls,
        folder: Path,
        graphs: Sequence[str],
        *,
        session: Callable[[Path, int], Session] = fast_session,
        threads: int = 0,
    ) -> GraphChain:
        """Raises BundleError for a graph that is missing or does not load."""
        missing = [g for g in graphs if not has_graph(folder / f"{g}.onnx")]
        if missing:
            raise BundleError(
                f"{missing[0]}.onnx is missing", where=str(folder), do="run the stage again"
            )
        return cls({g: session(folder / f"{g}.onnx", threads) for g in graphs})

    def run(self, arrays: Arrays, given: Arrays | None = None) -> dict[str, Array]:
        """Run all graphs; returns their outputs by `GRAPH/OUTPUT`.

        Graphs are fed what this chain made, or with `given` (the outputs of another chain) what
        that one made, so that each graph is judged alone.
        """
        outputs: dict[str, Array] = {}
        for graph, session in self.sessions.items():
            made = session.run(self.feeds(graph, arrays, outputs if given is None else given))
            outputs.update((f"{graph}/{name}", value) for name, value in made.items())
        return outputs

    def feeds(self, graph: str, arrays: Arrays, outputs: Arrays) -> dict[str, Array]:
        """Return the feeds of `graph`, given the outputs of graphs by `GRAPH/OUTPUT`."""
        earlier = list(self.sessions)[: list(self.sessions).index(graph)]
        carried = {
            key.partition("/")[2]: value
            for key, value in outputs.items()
            if key.partition("/")[0] in earlier
        }
        return feeds_of(graph, self.sessions[graph].inputs, arrays, carried)
