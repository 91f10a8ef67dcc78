"""The shapes that TensorRT engines take: smallest, best and largest of every input."""

from __future__ import annotations

from typing import Any

from ..artifacts import Manifest, Workspace
from ..errors import BuildError
from ..recipe import BuildOptions
from ..runtime.feeds import TOKENIZER_GRAPHS, GraphChain, load_sample, sample_files
from ..runtime.sessions.onnxruntime import reference_session
from .common import require_outputs, tokenizer_of
from .own_inputs import is_own

Shape = tuple[int, ...]
Profiles = dict[str, tuple[Shape, Shape, Shape]]


def graph_profiles(
    workspace: Workspace, exported: Manifest, options: BuildOptions
) -> dict[str, Profiles]:
    """Shapes by graph, in the order that the graphs run.

    Raises:
        BuildError: a size that the model does not take.
    """
    if is_own(exported):
        return own_profiles(workspace, exported, options.max_batch)
    tokenizer = tokenizer_of(exported)
    return {graph: tokenizer_profiles(graph, options, tokenizer) for graph in TOKENIZER_GRAPHS}


def own_profiles(workspace: Workspace, exported: Manifest, max_batch: int) -> dict[str, Profiles]:
    """Shapes of the first calibration sample, in batches from 1 to `max_batch`.

    A dynamic first axis on which the sample has length 1 is the batch; graphs that are fed what
    an earlier one makes get its shapes by running them on the sample.
    """
    calibrate, _ = require_outputs(workspace, "calibrate", stage="calibrate")
    sample = load_sample(sample_files(calibrate / "samples")[0])
    described = exported.results["graphs"]
    graphs = [graph["name"] for graph in described]
    chain = GraphChain.open(workspace.folder("export"), graphs, session=reference_session)
    outputs = chain.run(sample)
    found: dict[str, Profiles] = {}
    for graph in described:
        feeds = chain.feeds(graph["name"], sample, outputs)
        found[graph["name"]] = {}
        for value in graph["inputs"]:
            shape = tuple(feeds[value["name"]].shape)
            batched = shape[:1] == (1,) and not isinstance(value["shape"][0], int)
            most = (max_batch, *shape[1:]) if batched else shape
            found[graph["name"]][value["name"]] = (shape, most, most)
    return found


def tokenizer_profiles(graph: str, options: BuildOptions, tokenizer: dict[str, Any]) -> Profiles:
    """Shapes an engine takes: one image size, batches from 1 to `max_batch`."""
    stride, size, most = tokenizer["stride"], options.image_size, options.max_batch
    if size % stride:
        raise BuildError(
            f"image_size {size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    side = size // stride
    if graph == "encoder":
        name, tail = "image", [3, size, size]
    elif tokenizer["discrete"]:
        groups = tokenizer.get("groups", 1)
        name, tail = "indices", [side, side, *([groups] if groups > 1 else [])]
    else:
        name, tail = "latent", [tokenizer["latent_channels"], side, side]
    return {name: ((1, *tail), (most, *tail), (most, *tail))}
