"""Teacher forcing: what the graph of all positions is fed, made from the tokens of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.sessions.open import fast_session
from ..runtime.spec import TEACHER_FORCED
from .files import Array

Tokens = NDArray[np.int32] | NDArray[np.float32]


def forced_rows(
    forced: Mapping[str, Array], labels: Iterable[int], null: int | None
) -> Iterator[dict[str, Array]]:
    """Yield for each image the row of its label, then that of the null class if there is one."""
    for k, label in enumerate(labels):
        row = {name: values[k : k + 1] for name, values in forced.items()}
        for held in (label, null):
            if held is not None:
                yield {"labels": np.array([held], np.int64), **row}


def teacher_forcing(export: Path) -> Callable[[Tokens], dict[str, Array]]:
    """Return what makes the graph's inputs, but for the labels, from the tokens [N, L] of images.

    They are `features`, which lookup.onnx makes, or `tokens`, as many as the graph takes.
    """
    from ..graph.io import load_graph

    inputs = {str(v.name): v for v in load_graph(export / f"{TEACHER_FORCED}.onnx").graph.inputs}
    if "features" in inputs:
        lookup = fast_session(export / "lookup.onnx")
        return lambda tokens: lookup.run({"indices": tokens}, ["features"])
    shape = inputs["tokens"].shape
    assert shape is not None
    count = shape.numpy()[1] if shape.is_static() else shape[1]
    assert isinstance(count, int)
    return lambda tokens: {"tokens": tokens[:, :count].astype(np.int64)}
