"""Read class labels as people write them: numbers, and ranges of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import GenerationError

LABELS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_labels(texts: Sequence[str], num_classes: int) -> list[int]:
    """Return the labels that texts such as `3,7` and `0-9` name, in their order.

    Raises:
        GenerationError: neither a number nor a range, or beyond the classes.
    """
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
