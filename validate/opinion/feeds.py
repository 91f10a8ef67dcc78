"""Collect what graphs are fed on held-out samples, for another way of running to be fed alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.tokenizer import ImageTokenizer
from ...samples.files import GraphChain
from ...samples.forcing import Tokens
from ..measure.generated_images import Batch
from ..measure.teacher_forcing import ComparedGraph, TeacherForcedRun

SAMPLES = 4  # of each graph
Array = NDArray[np.generic]
Feeds = dict[str, list[dict[str, Array]]]  # of each run, by graph


def tokenizer_feeds(codec: ImageTokenizer, images: Iterable[NDArray[np.float32]]) -> Feeds:
    """Return images for the encoder, and what FP32's encoder makes of them for the decoder."""
    feeds: Feeds = {"encoder": [], "decoder": []}
    for image in images:
        tokens, latent = codec.encode(image)
        feeds["encoder"].append({"image": image})
        name, value = ("latent", latent) if tokens is None else ("indices", tokens)
        feeds["decoder"].append({name: value})
    return feeds


def chain_feeds(chain: GraphChain, samples: Iterable[Mapping[str, Array]]) -> Feeds:
    """Return what each of several graphs is fed, with the outputs of FP32's before it."""
    feeds: Feeds = {graph: [] for graph in chain.sessions}
    for arrays in samples:
        outputs: dict[str, Array] = {}
        for graph, session in chain.sessions.items():
            given = chain.feeds(graph, dict(arrays), outputs)
            found = session.run(given)
            outputs |= {f"{graph}/{name}": value for name, value in found.items()}
            feeds[graph].append(dict(given))
    return feeds


def forced_feeds(
    runs: Iterable[TeacherForcedRun], graphs: Mapping[str, ComparedGraph], count: int = SAMPLES
) -> Feeds:
    """Return the first runs of each graph of a generator under teacher forcing.

    What a run takes from the one before it is FP32's.
    """
    feeds: Feeds = {graph: [] for graph in graphs}
    given: Mapping[str, Any] = {}
    for run in runs:
        if all(len(each) >= count for each in feeds.values()):
            break
        fed = dict(run.feeds)
        if run.carried is not None:
            fed |= run.carried(dict(given))
        else:
            graph = graphs[run.graph]
            given = graph.reference.run(fed, [*graph.outputs])
        if len(feeds[run.graph]) < count:
            feeds[run.graph].append(fed)
    return feeds


def noted(batches: Iterator[Batch], first: list[Tokens]) -> Iterator[Batch]:
    """Yield batches as they come, and keep the tokens or latents of the first in `first`."""
    for batch in batches:
        if not first:
            first.append(batch[1][:SAMPLES].copy())
        yield batch


def decoder_runs(
    make: Callable[[NDArray[Any]], Mapping[str, Array]], first: Iterable[Tokens]
) -> list[dict[str, Array]]:
    """Return what an image decoder is fed with each of some images' tokens or latents."""
    return [dict(make(each[None])) for tokens in first for each in tokens]


def present(feeds: Feeds, folder: Path) -> Feeds:
    """Return the feeds of the graphs that a folder has."""
    return {
        graph: runs
        for graph, runs in feeds.items()
        if runs and (folder / f"{graph}.onnx").is_file()
    }
