"""Make what a generator's image decoder is fed from the tokens of images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.recording import GraphRun
from ..runtime.sessions.open import fast_session, has_graph
from ..runtime.spec import DECODER, GeneratorSpec
from .files import Array

# Images whose tokens a calibration keeps for the decoder. The engine rounds outputs of convolutions
# to the ranges seen: of var-mini, calibrated on 16, 32 and 64 images, the worst of 20 others has
# 28, 41 and 43 dB, and the Q/DQ graph's 39, 45 and 47.
DECODED = 32
MakeFeeds = Callable[[NDArray[Any]], dict[str, Array]]


def decoded_numbers(total: int, part: range) -> tuple[int, ...]:
    """Return the numbers of the images whose tokens are kept: evenly of `total`, from the first.

    Those of a `part`, which has one at least.
    """
    chosen = range(0, total, -(-max(1, total) // DECODED))
    return tuple(number for number in part if number in chosen) or tuple(part[:1])


def decoder_feeds(export: Path, spec: GeneratorSpec, threads: int = 0) -> MakeFeeds:
    """Return what makes the decoder's feeds from the tokens of images, in the order of generation.

    Tokens are int [N, L], or where they are continuous latents [N, c, h, w]. A lookup makes the
    latent of tokens of several scales; those of one map go back to their cells. A graph of a fixed
    batch gets its rows, the images again and again.
    """
    lookup = None
    if has_graph(export / "lookup.onnx"):
        lookup = fast_session(export / "lookup.onnx", threads)

    def feeds(tokens: NDArray[Any]) -> dict[str, Array]:
        name, values = "latent", tokens
        if lookup is not None:
            values = lookup.run({"indices": tokens.astype(np.int32)}, ["latent"])["latent"]
        elif not np.issubdtype(tokens.dtype, np.floating):
            side = int(np.sqrt(spec.length))
            cells = np.empty(tokens.shape, np.int32)
            cells[:, spec.order] = tokens
            name, values = "indices", cells.reshape(-1, side, side)
        rows = spec.static_batch or len(values)
        return {name: np.resize(values, (rows, *values.shape[1:]))}

    return feeds


def decoder_runs(
    feeds: MakeFeeds, tokens: NDArray[Any], first: int, chosen: Collection[int]
) -> Iterator[GraphRun]:
    """Yield the decoder's run of each image whose number, from `first` on, is `chosen`."""
    for number, row in enumerate(tokens, start=first):
        if number in chosen:
            yield GraphRun(DECODER, feeds(row[None]))
