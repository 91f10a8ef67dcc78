"""Save what each graph is fed with held-out samples, as FP32's own graphs are fed.

Samples go to a folder one after the other and are read from there run by run, so that memory does
not grow with their number. A graph that reads what an earlier one gives is fed what FP32's gives:
each graph is judged alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ...errors import CalibrationError
from ...graph.io import input_names
from ...runtime.sessions.open import open_session
from ...samples.files import (
    Array,
    Sample,
    feeds_of,
    graph_of,
    load_sample,
    sample_files,
    save_sample,
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class SavedFeeds:
    """Hold the files of each graph's runs, and of which sample each is.

    `unfed` says of graphs that nothing feeds, what is missing.
    """

    folder: Path
    runs: Mapping[str, Sequence[Path]]
    unfed: Mapping[str, str] = field(default_factory=dict)

    def load(self, graph: str, part: slice = slice(None)) -> Iterator[dict[str, Array]]:
        """Yield what a graph is fed, run by run."""
        for path in self.runs[graph][part]:
            yield load_sample(path)

    def halves(self, graph: str) -> tuple[slice, slice]:
        """Return the runs that sites are ranked on, and those that a choice is measured on.

        With a single run both are the same.
        """
        count = len(self.runs[graph])
        middle = (count + 1) // 2
        return (slice(middle), slice(middle, None)) if count > 1 else (slice(None), slice(None))


def save_samples(samples: Iterable[Sample], folder: Path) -> Path:
    """Write samples into a new folder, one file each."""
    folder.mkdir()
    for number, sample in enumerate(samples):
        save_sample(sample, folder, number)
    return folder


def save_feeds(
    export: Path,
    graphs: Sequence[str],
    samples: Path,
    folder: Path,
    progress: Progress,
    *,
    most: int | None = None,
    threads: int = 0,
) -> SavedFeeds:
    """Run the FP32 graphs on saved samples, and write what each of them is fed.

    `most` are the samples that are taken (None: all). FP32 is run only as far as a later graph
    reads what it gives, and then as it is written.

    Raises:
        CalibrationError: no graph is fed by any sample.
    """
    runs: dict[str, list[Path]] = {}
    unfed: dict[str, str] = {}
    inputs = {graph: input_names(export / f"{graph}.onnx") for graph in graphs}
    files = sample_files(samples)[:most]
    made_by: dict[Path, dict[str, Path]] = {path: {} for path in files}
    for position, graph in enumerate(graphs):
        later = {name for g in graphs[position + 1 :] for name in inputs[g]}
        # A generator's decoder has runs of its own, beside samples of its other graphs.
        runs_of_it = [path for path in files if graph_of(path) == graph]
        own = runs_of_it or [path for path in files if graph_of(path) is None]
        session = None
        for number, path in enumerate(own):
            arrays = load_sample(path, inputs[graph])
            held = {name: load_sample(file)[name] for name, file in made_by[path].items()}
            try:
                feeds = feeds_of(graph, inputs[graph], arrays, held)
            except CalibrationError as error:
                unfed[graph] = error.what
                break
            target = folder / graph
            target.mkdir(parents=True, exist_ok=True)
            file = target / f"{number:05d}.safetensors"
            file.write_bytes(save({k: _whole(v) for k, v in feeds.items()}))
            runs.setdefault(graph, []).append(file)
            if later:
                session = session or open_session(
                    export / f"{graph}.onnx",
                    optimized=False,
                    lean=True,
                    mapped=True,
                    threads=threads,
                )
                made = session.run(feeds)
                kept = {k: _whole(v) for k, v in made.items() if k in later}
                if kept:
                    file = target / f"{number:05d}.outputs.safetensors"
                    file.write_bytes(save(kept))
                    made_by[path] |= dict.fromkeys(kept, file)
            progress(f"feeds of {graph}", number + 1, len(own))
    if not runs:
        reason = "; ".join(unfed.values()) or "there are no samples"
        raise CalibrationError(f"no graph can be run: {reason}", do="give --samples 1 or more")
    return SavedFeeds(folder, runs, unfed)


def _whole(value: Array) -> Array:
    # Not ascontiguousarray, which gives a scalar an axis.
    return np.asarray(value, order="C")
