"""Compare what the sites of a tokenizer's Q/DQ graphs give with FP32's, all before them quantized.

Images are larger than tokens: sites are compared in parts whose outputs fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...calibrate.observers.reduce import values_by_name
from ...graph.builder import add_node
from ...graph.io import graph_bytes, load_graph
from ...graph.sites import Site, load_sites
from ...numerics.scheme import Plan
from ...runtime.sessions.open import open_session, reference_session
from ...runtime.sessions.session import Array, DeviceValue, OpenSession, Session, SessionObserver
from ...runtime.tokenizer import ImageTokenizer, Latent, Tokens
from ...workspace.files import decode_json
from ..metrics.sites import SiteAccumulator
from .site_outputs import compared_sites, open_with_outputs, site_outputs, undo_folds

MOST_BYTES = 512 * 2**20  # of the outputs that one graph returns at once
Fed = tuple[NDArray[np.float32], Tokens | Latent]  # an image, and what FP32 makes of it
# The decoder is given FP32's tokens, so that it does not see the encoder's error.
RUNS: dict[str, Callable[[ImageTokenizer, NDArray[np.float32], Tokens | Latent], object]] = {
    "encoder": lambda codec, image, code: codec.encode(image),
    "decoder": lambda codec, image, code: codec.decode(code),
}


class OutputKeeper(SessionObserver):
    """Keep the outputs of the last run."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.last: dict[str, Array] = {}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        self.last = super().run(feeds, outputs)
        return self.last

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds, host)
        self.last = {name: value.numpy() for name, value in found.items()}
        return found


def measure_sites(
    export: Path,
    quantized: Path,
    images: Sequence[NDArray[np.float32]],
    progress: Callable[[int, int], None],
) -> SiteAccumulator:
    """Return how far the output of each convolution is from FP32's, in graph order.

    `images` are float32 [1, 3, H, W] in [-1, 1], of one size. `progress` is called with the number
    of graphs done and of all.
    """
    reference = ImageTokenizer.reference(export)
    fed: list[Fed] = []
    for image in images:
        tokens, latent = reference.encode(image)
        fed.append((image, latent if tokens is None else tokens))
    plan = decode_json(quantized / "plan.json", Plan, do="run `arvg-trt quantize` again")
    site_map = load_sites(export)
    found = SiteAccumulator()
    for done, graph in enumerate(RUNS, start=1):
        # Behind a linear's product follow its factor and offset, which a convolution's node holds.
        convolutions = [s for s in site_map.of_graph(graph) if s.op == "Conv"]
        sites = compared_sites(convolutions, plan)
        if sites:
            _measure_graph(export, quantized, graph, sites, fed, found)
        progress(done, len(RUNS))
    return found


def _measure_graph(
    export: Path,
    quantized: Path,
    graph: str,
    sites: Sequence[Site],
    fed: Sequence[Fed],
    found: SiteAccumulator,
) -> None:
    outputs = site_outputs(sites, ())
    restore = undo_folds(quantized / f"{graph}.onnx", sites)
    tensors = list(dict.fromkeys(outputs.values()))
    for part in parts(tensors, output_bytes(export, graph, tensors, fed[0]), MOST_BYTES):
        fp32, own = (_Graph.with_outputs(folder, graph, part) for folder in (export, quantized))
        for number, one in enumerate(fed):
            wanted, actual = fp32.run(one), own.run(one)
            for site, tensor in outputs.items():
                if tensor in part:
                    undo = restore.get(site)
                    value = undo(actual[tensor]) if undo else actual[tensor]
                    found.add(site, str(number), wanted[tensor], value)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph of a tokenizer whose outputs are looked at, in the tokenizer that feeds it."""

    name: str
    keeper: OutputKeeper
    codec: ImageTokenizer

    @classmethod
    def open(cls, folder: Path, name: str, session: OpenSession) -> _Graph:
        """Open one graph with a `session`, the others as references."""
        keepers: list[OutputKeeper] = []

        def open_graph(path: Path, threads: int) -> Session:
            if path.stem != name:
                return reference_session(path, threads)
            keepers.append(OutputKeeper(session(path, threads)))
            return keepers[0]

        codec = ImageTokenizer.open(folder, session=open_graph, verify=False)
        return cls(name, keepers[0], codec)

    @classmethod
    def with_outputs(cls, folder: Path, name: str, tensors: Sequence[str]) -> _Graph:
        return cls.open(folder, name, lambda path, n: open_with_outputs(path, tensors, n))

    def run(self, fed: Fed) -> dict[str, Array]:
        RUNS[self.name](self.codec, *fed)
        return self.keeper.last


def output_bytes(folder: Path, graph: str, tensors: Sequence[str], fed: Fed) -> dict[str, int]:
    """Return how many bytes the float32 tensors of a graph have, without keeping one of them."""

    def open_shapes(path: Path, threads: int) -> Session:
        model = load_graph(path)
        values = values_by_name(model.graph)
        shapes = [add_node(model.graph, "Shape", [values[t]], f"{t}/shape") for t in tensors]
        model.graph.outputs.extend(shapes)
        return open_session(path, optimized=False, graph=graph_bytes(model), threads=threads)

    found = _Graph.open(folder, graph, open_shapes).run(fed)
    return {name: 4 * math.prod(found[f"{name}/shape"].tolist()) for name in tensors}


def parts(names: Sequence[str], sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Split names, in order, into parts of `most` bytes or of a single name."""
    part: list[str] = []
    for name in names:
        if part and sum(sizes[each] for each in part) + sizes[name] > most:
            yield part
            part = []
        part.append(name)
    if part:
        yield part
