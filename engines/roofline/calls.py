"""Find out which graphs a generator runs for a batch, how often, and on which shapes.

The family's own schedule says it: it runs with sessions that compute shapes instead of values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from ...runtime.families import read_family
from ...runtime.folders import read_spec
from ...runtime.generator import Generator
from ...runtime.sessions.session import Array, DeviceValue
from .shapes import GraphShapes


@dataclass(frozen=True, slots=True)
class GraphCall:
    """Say that a graph runs `runs` times where its dynamic axes have these sizes."""

    graph: str
    axes: tuple[tuple[str, int], ...]
    runs: int


def generator_calls(export: Path, images: int) -> tuple[list[GraphCall], dict[str, GraphShapes]]:
    """Return what a generator of an export folder runs for a batch, in order, and its graphs.

    The sampling is the model's own, with guidance where it has one.

    Raises:
        WorkspaceError: there is no generator.
        BuildError: the shape of an output is not known.
    """
    _, spec = read_spec(export)
    counts: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()
    graphs: dict[str, GraphShapes] = {}

    def open_shapes(path: Path, threads: int) -> ShapeSession:
        graphs[path.stem] = GraphShapes.read(path)
        return ShapeSession(path, graphs[path.stem], counts)

    loop = read_family(export).open_loop(export, spec, open_shapes, 0)
    labels = np.arange(images) % spec.num_classes
    Generator(loop, spec).generate(labels, batch_size=images, greedy=True)
    calls = [GraphCall(graph, axes, runs) for (graph, axes), runs in counts.items()]
    return calls, graphs


@dataclass(frozen=True, slots=True)
class Zeros:
    """Hold zeros of a shape, which take no memory."""

    values: Array

    def shape(self) -> Sequence[int]:
        return self.values.shape

    def numpy(self) -> Array:
        return self.values


class ShapeSession:
    """Answer every run of a graph with zeros of the shapes that it would return, and count it."""

    device, memory, fallback = "shapes", "cpu", None

    def __init__(
        self,
        path: Path,
        graph: GraphShapes,
        counts: Counter[tuple[str, tuple[tuple[str, int], ...]]],
    ) -> None:
        self.path = path
        self._graph, self._counts = graph, counts

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._graph.outputs)

    @property
    def shapes(self) -> Mapping[str, Sequence[object]]:
        return {**self._graph.inputs, **self._graph.outputs}

    @cached_property
    def types(self) -> Mapping[str, str]:
        values = [*self._graph.proto.graph.input, *self._graph.proto.graph.output]
        return {
            value.name: str(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            for value in values
        }

    @property
    def metadata(self) -> Mapping[str, str]:
        return {each.key: each.value for each in self._graph.proto.metadata_props}

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        return Zeros(array)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        shapes = {name: value.shape for name, value in feeds.items()}
        return self._answer(shapes, outputs or self.outputs)

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        shapes = {
            name: value.shape if isinstance(value, np.ndarray) else tuple(value.shape())
            for name, value in feeds.items()
        }
        return {k: Zeros(value) for k, value in self._answer(shapes, self.outputs).items()}

    def _answer(
        self, shapes: Mapping[str, Sequence[int]], outputs: Sequence[str]
    ) -> dict[str, Array]:
        axes = self._graph.axes(shapes)
        self._counts[self.path.stem, tuple(sorted(axes.items()))] += 1
        return {name: self._zeros(name, axes) for name in outputs}

    def _zeros(self, name: str, axes: Mapping[str, int]) -> NDArray[np.generic]:
        nothing = np.zeros((), self.types[name])
        return np.broadcast_to(nothing, self._graph.shape(name, axes))
