"""Compute the shapes that TensorRT engines take: smallest, best and largest of every input."""

from __future__ import annotations

from pathlib import Path

from ...errors import BuildError
from ...recipe.build import BuildOptions
from ...runtime.folders import read_spec
from ...runtime.generator import OTHER_GRAPHS
from ...runtime.sessions.open import reference_session
from ...samples.files import TOKENIZER_GRAPHS, GraphChain, load_sample, sample_files
from ...workspace.facts import TokenizerFacts, custom_graphs, kind_of, tokenizer_of
from ...workspace.manifest import Manifest
from ...workspace.stage import require_outputs
from ...workspace.workspace import Workspace

Shape = tuple[int, ...]
Profiles = dict[str, tuple[Shape, Shape, Shape]]


def graph_profiles(
    workspace: Workspace, exported: Manifest, options: BuildOptions
) -> dict[str, Profiles]:
    """Return shapes by graph, in the order that graphs run; a generator's are by name.

    Raises:
        BuildError: a size that the model does not take, or one that nothing here knows.
    """
    kind = kind_of(exported)
    if kind == "generator":
        return generator_profiles(workspace.folder("export"), options.max_batch)
    if kind == "custom":
        return custom_profiles(workspace, exported, options.max_batch)
    tokenizer = tokenizer_of(exported)
    return {graph: tokenizer_profiles(graph, options, tokenizer) for graph in TOKENIZER_GRAPHS}


def custom_profiles(
    workspace: Workspace, exported: Manifest, max_batch: int
) -> dict[str, Profiles]:
    """Return shapes of the first calibration sample, in batches from 1 to `max_batch`.

    A dynamic first axis on which the sample has length 1 is the batch; graphs that are fed what
    an earlier one makes get its shapes by running them on the sample.
    """
    calibrate, _ = require_outputs(workspace, "calibrate", stage="calibrate")
    sample = load_sample(sample_files(calibrate / "samples")[0])
    described = custom_graphs(exported)
    graphs = [graph.name for graph in described]
    chain = GraphChain.open(workspace.folder("export"), graphs, session=reference_session)
    outputs = chain.run(sample)
    profiles: dict[str, Profiles] = {}
    for graph in described:
        feeds = chain.feeds(graph.name, sample, outputs)
        profiles[graph.name] = {}
        for value in graph.inputs:
            shape = tuple(feeds[value.name].shape)
            first = value.shape[0] if value.shape else 0
            batched = shape[:1] == (1,) and not isinstance(first, int)
            most = (max_batch, *shape[1:]) if batched else shape
            profiles[graph.name][value.name] = (shape, most, most)
    return profiles


def generator_profiles(export: Path, most: int) -> dict[str, Profiles]:
    """Return shapes of each graph that generates: 1 to `most` images, at any step.

    They hold with and without guidance. A graph of fixed shapes has no profile.
    """
    from ...graph.io import read_proto

    _, spec = read_spec(export)
    profiles: dict[str, Profiles] = {}
    for path in sorted(export.glob("*.onnx")):
        if path.stem in OTHER_GRAPHS:
            continue
        sizes = {"rows": (1, 2 * most, 2 * most), "batch": (1, most, most)}
        sizes |= spec.axis_sizes(path.stem, most)
        profiles[path.stem] = {}
        for value in read_proto(path).graph.input:
            axes = value.type.tensor_type.shape.dim
            odd = [a.dim_param for a in axes if a.dim_param and a.dim_param not in sizes]
            if odd:
                raise BuildError(
                    f"input {value.name} has the axis {odd[0]}, whose sizes are not known",
                    where=str(path),
                    do="build for onnxruntime",
                )
            if any(axis.dim_param for axis in axes):
                ranges = [
                    sizes[axis.dim_param] if axis.dim_param else (axis.dim_value,) * 3
                    for axis in axes
                ]
                low, best, high = zip(*ranges, strict=True)
                profiles[path.stem][value.name] = (low, best, high)
    return profiles


def tokenizer_profiles(graph: str, options: BuildOptions, tokenizer: TokenizerFacts) -> Profiles:
    """Return the shapes an engine takes: one image size, batches from 1 to `max_batch`."""
    stride, size, most = tokenizer.stride, options.image_size, options.max_batch
    if size % stride:
        raise BuildError(
            f"image_size {size} is not a multiple of the stride {stride}",
            do=f"use a multiple of {stride}",
        )
    if tokenizer.image_size not in (None, size):
        raise BuildError(
            f"image_size {size} is not the {tokenizer.image_size} of this tokenizer's images",
            do=f"use {tokenizer.image_size}",
        )
    side = size // stride
    if graph not in TOKENIZER_GRAPHS:
        raise BuildError("is no graph of an image tokenizer", where=graph)
    if graph == "encoder":
        name, tail = "image", [3, size, size]
    elif isinstance(tokenizer.tokens, int):
        name, tail = "indices", [tokenizer.tokens]
    elif tokenizer.discrete:
        codes = tokenizer.codes_per_cell
        name, tail = "indices", [side, side, *([codes] if codes > 1 else [])]
    else:
        name, tail = "latent", [tokenizer.latent_channels, side, side]
    return {name: ((1, *tail), (most, *tail), (most, *tail))}
