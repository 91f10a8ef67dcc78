"""Draws the classes of a generator's own pictures, where nobody names them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..errors import CalibrationError
from ..workspace.files import open_tensors
from .files import sample_files

LABELS = "labels"
# Tells the draw of classes from other streams of the same seed.
STREAM = 0x636C6173


def drawn_classes(num_classes: int, count: int, seed: int, used: Collection[int] = ()) -> list[int]:
    """Draw the classes of `count` images: all as often, and those that are left over at random.

    A draw takes classes that are not `used` before others. Two rounds of all classes or more are in
    their order, in which each half of the pictures has seen all of them; one is in drawn order.
    """
    rng = np.random.default_rng([STREAM, seed])
    order = rng.permutation(num_classes)
    others = np.isin(order, np.fromiter(used, np.int64))
    order = np.concatenate([order[~others], order[others]])
    rounds, rest = divmod(count, num_classes)
    whole = np.arange(num_classes) if rounds > 1 else order
    return [int(c) for c in np.concatenate([np.tile(whole, rounds), order[:rest]])]


def saved_classes(samples: Path, num_classes: int) -> list[int]:
    """Return the classes of saved samples, ascending; the null class is none."""
    found: set[int] = set()
    for path in sample_files(samples):
        do = "run `arvg-trt calibrate` again"
        with open_tensors(path, do=do, error=CalibrationError) as file:
            if LABELS in file.keys():  # noqa: SIM118
                found.update(int(label) for label in file.get_tensor(LABELS).flat)
    return sorted(found - {num_classes})
