"""DGC in the calibrate stage: candidates on disk -> the rows that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Manifest
from ..errors import CalibrationError
from ..recipe import CalibrateOptions
from ..runtime.feeds import load_sample, sample_files
from ..runtime.generator import FULL, read_spec
from .common import Reporter, load_sites
from .generated_samples import is_generator


def require_halves(exported: Manifest) -> None:
    """Raises CalibrationError for a model whose samples have no condition to leave out."""
    if not is_generator(exported) or f"{FULL}.onnx" not in exported.outputs:
        raise CalibrationError(
            "DGC weighs conditional rows against null ones, which only a generator with a full "
            "graph has",
            where="--dgc",
            do="leave it out",
        )


def keep_far_rows(
    export: Path, candidates: Path, target: Path, options: CalibrateOptions, reporter: Reporter
) -> dict[str, Any]:
    """Move twice `options.samples` rows of `candidates` to `target`; says how they were chosen.

    Raises:
        CalibrationError: no rows of the null class, or too few of either.
    """
    from ..calibrate.dgc import choose_rows, first_token_features

    files = sample_files(candidates)
    null_class = read_spec(export)[1].num_classes
    is_null = np.array([int(load_sample(p)["labels"].flat[0]) == null_class for p in files])
    if not is_null.any():
        raise CalibrationError(
            "DGC weighs conditional rows against null ones, and there are none without guidance",
            where="--dgc",
            do="leave it out",
        )
    features = first_token_features(
        export,
        candidates,
        load_sites(export).of_graph(FULL),
        batch_size=options.batch_size,
        progress=reporter.progress,
    )
    choice = choose_rows(
        features[~is_null], features[is_null], 2 * options.samples, options.dgc_select
    )
    kept = np.concatenate(
        [np.flatnonzero(~is_null)[choice.conditional], np.flatnonzero(is_null)[choice.null]]
    )
    for number, k in enumerate(np.sort(kept)):
        files[k].rename(target / f"{number:05d}{files[k].suffix}")
    if choice.covariance == "shrunk":
        reporter.warn(
            f"{len(files)} candidates are too few for the covariance of {features.shape[1]} "
            "features: it is shrunk towards the identity"
        )
    medians = (float(np.median(values)) for values in choice.distances)
    return {
        "candidates": len(files),
        "kept": len(kept),
        "conditional_share": choice.share,
        "select": options.dgc_select,
        "covariance": choice.covariance,
        "agree": choice.agree,
        "median_distance": dict(zip(("conditional", "null"), medians, strict=True)),
    }
