"""Find the earlier run in a workspace that says what a new quantization's stage may take."""

from __future__ import annotations

from collections.abc import Sequence

from ..workspace.facts import FP16
from ..workspace.times import Took


def latest_alike(times: dict[str, Took], folder: str) -> tuple[str, Took] | None:
    """Return the latest run of the stage of a folder under another name, and its folder.

    Engines are alike in back end and targets: `engines/NAME/LABEL`.
    """
    parts = folder.split("/")
    for name, took in reversed(times.items()):
        other = name.split("/")
        if name == folder or not len(other) == len(parts) > 1:
            continue
        if (other[0], other[2:]) == (parts[0], parts[2:]) and is_fp16(other) == is_fp16(parts):
            return name, took
    return None


def is_fp16(parts: Sequence[str]) -> bool:
    """Return whether a folder's parts are those of engines of the unquantized graphs."""
    return parts[0] == "engines" and parts[1] == FP16
