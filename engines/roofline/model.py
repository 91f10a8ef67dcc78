"""Predict what a workspace's model costs: any kind of model, by the graphs of its export."""

from __future__ import annotations

from ...graph.sites import load_sites
from ...recipe.build import BuildOptions
from ...workspace.facts import kind_of, tokenizer_of
from ...workspace.stage import require_outputs
from ...workspace.workspace import Workspace
from ..tensorrt.profiles import graph_profiles
from .calls import GraphCall, generator_calls
from .machine import Machine
from .predict import Prediction, predict
from .shapes import GraphShapes


def predict_model(
    workspace: Workspace, machine: Machine, images: int, image_size: int | None = None
) -> Prediction:
    """Return what a batch costs on a machine.

    A tokenizer encodes and decodes `images` of `image_size`, without one of the only size that it
    takes, or 256; graphs of one's own run on the first
    calibration sample, as a batch of so many; a generator makes so many images.

    Raises:
        BuildError: a size that the model does not take, or a shape that is not known.
        WorkspaceError: nothing was exported, or, of graphs of one's own, calibrated.
    """
    calls, graphs = model_calls(workspace, images, image_size)
    return predict(calls, graphs, load_sites(workspace.folder("export")), machine, images)


def model_calls(
    workspace: Workspace, images: int, image_size: int | None = None
) -> tuple[list[GraphCall], dict[str, GraphShapes]]:
    """Return what a batch runs, as `predict_model` says, and the graphs with their shapes."""
    export, exported = require_outputs(workspace, "export", stage="export")
    if kind_of(exported) == "generator":
        return generator_calls(export, images)
    if image_size is None and kind_of(exported) == "tokenizer":
        image_size = tokenizer_of(exported).image_size
    options = BuildOptions(image_size=image_size or BuildOptions().image_size, max_batch=images)
    profiles = graph_profiles(workspace, exported, options)
    graphs = {name: GraphShapes.read(export / f"{name}.onnx") for name in profiles}
    calls = []
    for name, inputs in profiles.items():
        axes = graphs[name].axes({value: most for value, (_, _, most) in inputs.items()})
        calls.append(GraphCall(name, tuple(sorted(axes.items())), 1))
    return calls, graphs
