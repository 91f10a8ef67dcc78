"""Compare the features of a set of images with those of a reference: FID and its kin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ..metrics.frechet import gaussian_distance
from ..metrics.inception_score import adm_inception_score, fidelity_inception_score
from ..metrics.kid import SUBSET, Kid, kernel_distance
from ..metrics.moments import Gaussian, Moments
from ..metrics.precision_recall import NEIGHBOURS, precision_and_recall
from ..quality.open import LOGITS, POOL, SPATIAL

Features = NDArray[np.float32]
Parts = Callable[[str], Iterator[Features]]  # the features [n, D] of that name, part by part
Tell = Callable[[str], None]


class Distribution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold what was measured of a set of images; None is not measured, and ``notes`` say why.

    ``fid`` and ``sfid`` compare Gaussians of `pool` and `spatial` features with the reference's.
    ``inception_score`` is the ADM evaluator's, in parts of 5,000 images in their order;
    ``inception_score_shuffled`` torch-fidelity's, in ten parts of a drawn order. ``precision`` and
    ``recall`` are of balls up to the third neighbour, ``kid`` of drawn subsets.
    """

    images: int
    reference_images: int | None = None
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    inception_score_std: float | None = None
    inception_score_shuffled: float | None = None
    precision: float | None = None
    recall: float | None = None
    kid: Kid | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """Hold what sets are compared with: Gaussians by feature, and the images' `pool` features.

    Statistics without images have no features, and give no precision, recall and KID.
    """

    name: str
    gaussians: Mapping[str, Gaussian]
    pool: Features | None
    side: tuple[int, int] | None = None  # of the images, where there are some


def measure_distribution(
    parts: Parts,
    widths: Mapping[str, int],
    count: int,
    reference: Reference | None,
    side: tuple[int, int],
    tell: Tell = lambda step: None,
) -> Distribution:
    """Measure features of `count` images of a side, with `widths` by name.

    `tell` is told each step.

    Raises:
        AccuracyError: features that are not finite, a reference of another width, or fewer than
            two images.
    """
    if count < 2:
        raise AccuracyError(
            f"{count} image is no set of images", do="give two images or more, as many as you can"
        )
    notes: list[str] = []
    found: dict[str, Any] = {}
    if reference is None:
        notes.append("there is no reference, which FID, sFID, precision, recall and KID need")
    else:
        if reference.side not in (None, side):
            sizes = ["x".join(map(str, s)) for s in (reference.side, side) if s is not None]
            notes.append(f"the reference's images are {sizes[0]}, these are {sizes[1]}")
        found |= distances(parts, widths, count, reference, notes, tell)
    if LOGITS in widths:
        tell("Inception score")
        logits = np.concatenate(list(parts(LOGITS)))
        score, shuffled = adm_inception_score(logits), fidelity_inception_score(logits)
        found |= {"inception_score": score.mean, "inception_score_std": score.deviation}
        found["inception_score_shuffled"] = None if shuffled is None else shuffled.mean
    else:
        notes.append(f"the network has no output {LOGITS}, which the Inception score needs")
    return Distribution(images=count, notes=tuple(notes), **found)


def distances(
    parts: Parts,
    widths: Mapping[str, int],
    count: int,
    reference: Reference,
    notes: list[str],
    tell: Tell,
) -> dict[str, Any]:
    """Return the fields that need a reference; adds to `notes` what is missing or doubtful."""
    found: dict[str, Any] = {}
    for field, feature in (("fid", POOL), ("sfid", SPATIAL)):
        title = "FID" if field == "fid" else "sFID"
        if feature not in widths:
            notes.append(f"the network has no output {feature}, which {title} needs")
        elif feature not in reference.gaussians:
            notes.append(f"{reference.name} has no statistics of {feature}, which {title} needs")
        else:
            tell(title)
            theirs, own = reference.gaussians[feature], gaussian(parts(feature))
            found[field] = gaussian_distance(own, theirs)
            fewest = min(count, count if theirs.count is None else theirs.count)
            if fewest <= widths[feature]:
                notes.append(
                    f"{title} of {fewest:,} images on {widths[feature]:,} features is biased "
                    "upward: compare it with that of as many images alone"
                )
    if reference.pool is None:
        notes.append(f"{reference.name} has no images, which precision, recall and KID need")
        return found
    found["reference_images"] = len(reference.pool)
    pool = np.concatenate(list(parts(POOL)))
    if min(count, len(reference.pool)) <= NEIGHBOURS:
        notes.append(f"precision and recall need more than {NEIGHBOURS} images of each")
    else:
        tell("precision and recall")
        found["precision"], found["recall"] = precision_and_recall(reference.pool, pool)
    tell("KID")
    if len(reference.pool) < 2:
        notes.append("KID needs two images of each")
        return found
    found["kid"] = kernel_distance(pool, reference.pool)
    if found["kid"].subset < SUBSET:
        notes.append(f"KID is of subsets of {found['kid'].subset} images, not of {SUBSET:,}")
    return found


def gaussian(features: Iterator[Features]) -> Gaussian:
    moments = Moments()
    for part in features:
        moments.add(part)
    return moments.result()
