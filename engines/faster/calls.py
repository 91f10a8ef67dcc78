"""Find out which graphs run for one image or sample, how often, and on which shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...graph.sites import load_sites
from ...runtime.sessions.open import fast_session
from ...samples.files import GraphChain, load_sample, sample_files
from ...workspace.facts import Exported
from ..roofline.calls import GraphCall, generator_calls
from ..roofline.shapes import GraphShapes

Called = tuple[Sequence[GraphCall], Mapping[str, GraphShapes]]


def calls_of_one(model: Exported, samples: Path) -> Called:
    """Return what runs for one image of a generator, or for the first sample of calibration.

    Raises:
        BuildError: the shape of an output is not known.
    """
    if model.kind == "generator":
        return generator_calls(model.folder, 1)
    names = load_sites(model.folder).graphs
    chain = GraphChain.open(model.folder, names, session=fast_session)
    sample = load_sample(sample_files(samples)[0])
    outputs = chain.run(sample)
    graphs = {name: GraphShapes.read(model.folder / f"{name}.onnx") for name in names}
    calls = []
    for name in names:
        feeds = chain.feeds(name, sample, outputs)
        axes = graphs[name].axes({key: value.shape for key, value in feeds.items()})
        calls.append(GraphCall(name, tuple(sorted(axes.items())), 1))
    return calls, graphs
