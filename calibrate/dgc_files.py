"""DGC on saved samples: the rows of all candidates that are kept, and what the manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import CalibrationError
from ..graph.sites import load_sites
from ..recipe.calibrate import CalibrateOptions
from ..runtime.folders import read_spec
from ..runtime.recording import GraphRun
from ..runtime.spec import TEACHER_FORCED
from ..samples.files import Sample, load_sample, sample_files
from ..workspace.facts import Exported
from ..workspace.stage import Reporter
from .calibration_run import CalibrationRun
from .dgc import choose_rows, first_token_features
from .facts import DgcSummary


def require_conditions(model: Exported) -> None:
    """Raises CalibrationError for a model whose samples have no condition to leave out."""
    if model.kind != "generator":
        raise CalibrationError(
            "DGC weighs conditional rows against null ones, which only a generator has",
            where="--dgc",
            do="leave it out",
        )


def single_rows(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield recorded runs that have labels row by row, anything else as it is."""
    for sample in samples:
        if isinstance(sample, GraphRun) and "labels" in sample.feeds:
            for k in range(len(sample.feeds["labels"])):
                feeds = {n: rows[k : k + 1] for n, rows in sample.feeds.items()}
                yield GraphRun(sample.graph, feeds)
        else:
            yield sample


def keep_far_rows(
    export: Path, candidates: Path, target: Path, options: CalibrateOptions, reporter: Reporter
) -> DgcSummary:
    """Move the rows of `options.count` images from `candidates` to `target`.

    Of recorded runs those of the first graph, as many as are kept of an image; of the other
    graphs', which DGC does not weigh, the first images'. An image has two rows.

    Raises:
        CalibrationError: no rows of the null class, or too few of either.
    """
    _, spec = read_spec(export)
    runs = {TEACHER_FORCED: 1} if spec.recording is None else dict(spec.recording.runs_per_image)
    graph, *others = runs
    files, null_class = sample_files(candidates, graph), spec.num_classes
    is_null = np.array([int(load_sample(p)["labels"].flat[0]) == null_class for p in files])
    if not is_null.any():
        raise CalibrationError(
            "DGC weighs conditional rows against null ones, and there are none without guidance",
            where="--dgc",
            do="leave it out",
        )
    run = CalibrationRun(export, candidates, (graph,), options.batch_size, reporter.progress)
    features = first_token_features(run, load_sites(export).of_graph(graph))
    choice = choose_rows(
        features[~is_null],
        features[is_null],
        2 * options.count * runs[graph],
        options.dgc_select,
    )
    kept = np.concatenate(
        [np.flatnonzero(~is_null)[choice.conditional], np.flatnonzero(is_null)[choice.null]]
    )
    moved = [files[k] for k in np.sort(kept)]
    for other in others:
        moved += sample_files(candidates, other)[: options.count * runs[other]]
    for number, path in enumerate(moved):
        path.rename(target / f"{number:05d}.{path.name.partition('.')[2]}")
    if choice.covariance == "shrunk":
        reporter.warn(
            f"{len(files)} candidates are too few for the covariance of {features.shape[1]} "
            "features: it is shrunk towards the identity"
        )
    conditional, null = (float(np.median(values)) for values in choice.distances)
    return DgcSummary(
        candidates=len(files),
        kept=len(kept),
        conditional_share=choice.share,
        select=options.dgc_select,
        covariance=choice.covariance,
        agree=choice.agree,
        median_distance={"conditional": conditional, "null": null},
    )
