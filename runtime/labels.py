"""Read class labels as people write them, numbers and ranges of them, and check a program's."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import GenerationError
from .spec import GeneratorSpec

EXAMPLES = (0, 7, 207, 360)  # that an error names, as far as a model has them
MOST_IMAGES = 10**6
LABELS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_labels(texts: Sequence[str], num_classes: int) -> list[int]:
    """Return the labels that texts such as `3,7` and `0-9` name, in their order.

    Raises:
        GenerationError: no text, neither a number nor a range, or beyond the classes.
    """
    if not texts:
        example = ",".join(str(each) for each in EXAMPLES if each < num_classes)
        raise GenerationError(
            f"no class is named, and this model has {num_classes}: 0 to {num_classes - 1}",
            do=f"give classes to make images of, say --labels {example}",
        )
    labels: list[int] = []
    for part in ",".join(texts).split(","):
        match = LABELS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise GenerationError(
                f"{part.strip()!r} is neither a class nor a range", do="write e.g. 3,7 or 0-9"
            )
        if last >= num_classes:
            raise GenerationError(
                f"label out of range: {part.strip()}",
                do=f"this model's classes are 0 to {num_classes - 1}",
            )
        labels.extend(range(first, last + 1))
    return labels


def check_labels(
    spec: GeneratorSpec, labels: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.int64]:
    """Return labels as int64 [N].

    Raises:
        GenerationError: none, not a list of integers, or one out of range.
    """
    array = np.asarray(labels)
    last = spec.num_classes - 1
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise GenerationError(
            f"labels of shape {array.shape} and type {array.dtype}",
            do=f"give a list of one or more classes from 0 to {last}",
        )
    odd = sorted({int(label) for label in array if not 0 <= label <= last})
    if odd:
        named = ", ".join(str(label) for label in odd[:8])
        raise GenerationError(
            f"labels out of range: {named}{', ...' if len(odd) > 8 else ''}",
            do=f"this model's classes are 0 to {last}",
        )
    return array.astype(np.int64)


def require_few(count: int) -> None:
    """Raise GenerationError for more images than a run can end with, before memory is taken."""
    if count > MOST_IMAGES:
        raise GenerationError(
            f"{count:,} images, and at most {MOST_IMAGES:,} are made at once",
            where="--count",
            do="ask for fewer, in runs of different seeds",
        )
