"""Find out which sites of a quantization cost its accuracy, and what raising them brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ...graph.sites import Site
from ...numerics.scheme import SitePlan
from ...quantize.chains import Chain, find_chain
from ...samples.files import Array
from .accumulated import measure_accumulated
from .alignment import AlignedGraph, align
from .alone import MOST_PART, Alone, AloneMeasurement, parts_of, quantized_chains
from .feeds import SavedFeeds
from .noise import BucketedNoise
from .scales import BetterScale, better_scales
from .whole import measure_alone, measure_raised, open_targets, raised_session

Progress = Callable[[str, int, int], None]
SCALE_RUNS = 2  # that other scales are tried on


@dataclass(frozen=True, slots=True)
class GraphFindings:
    """Hold what was measured of one graph: its sites, and the relative noise of its outputs."""

    noise: float
    accumulated: Mapping[str, BucketedNoise]
    alone: Mapping[str, Alone]
    at_outputs: Mapping[str, float]
    scales: Mapping[str, Sequence[BetterScale]]


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """Hold a graph of the export and of a quantization, the sites of both, and what they are fed.

    `sites` are all, `planned` those that are quantized, `most` the bytes that outputs, or constants
    of changed graphs, may take at a time. `sides` are those of a model's token maps.
    """

    export: Path
    quantized: Path
    name: str
    sites: Sequence[Site]
    planned: Sequence[Site]
    entries: Mapping[str, SitePlan]
    feeds: SavedFeeds
    most: int
    sides: Sequence[int] = ()
    threads: int = 0

    @property
    def fp32_path(self) -> Path:
        return self.export / f"{self.name}.onnx"

    @property
    def quantized_path(self) -> Path:
        return self.quantized / f"{self.name}.onnx"

    @property
    def part_bytes(self) -> int:
        """Return the bytes of constants that a changed graph may have beside those of its file.

        They exist about four times while a session is made of it.
        """
        return min(self.most // 4, MOST_PART)

    def align(self) -> AlignedGraph:
        """Return the FP32 graph with the folds of the Q/DQ graph, to be changed."""
        return align(self.fp32_path, self.quantized_path, self.sites, self.entries)

    def fed(self, part: slice) -> Iterable[dict[str, Array]]:
        return self.feeds.load(self.name, part)

    def findings(self, chosen: Sequence[Site], progress: Progress) -> GraphFindings:
        """Measure the `chosen` sites on the first half of the runs."""
        ranking, _ = self.feeds.halves(self.name)
        fed = partial(self.fed, ranking)
        accumulated = measure_accumulated(
            self.fp32_path,
            self.quantized_path,
            self.align,
            self.planned,
            fed,
            partial(progress, f"{self.name}: sites in order"),
            most=self.most,
            sides=self.sides,
            threads=self.threads,
        )
        noise = self.raised_noise((), ranking)
        alone: dict[str, Alone] = {}
        scales: dict[str, Sequence[BetterScale]] = {}
        at_outputs: dict[str, float] = {}
        chains = quantized_chains(self.align(), self.quantized_path, chosen)
        for part in parts_of(chains, self.part_bytes):
            measurement = self.alone_measurement(part)
            for feeds in fed():
                measurement.add(feeds)
            alone |= measurement.result()
            progress(f"{self.name}: other scales", len(scales), len(chains))
            scales |= better_scales(measurement, islice(fed(), SCALE_RUNS))
            del measurement
            at_outputs |= measure_alone(
                self.fp32_path,
                self.align(),
                part,
                self.sites,
                fed,
                partial(progress, f"{self.name}: sites alone"),
                self.threads,
            )
        return GraphFindings(noise, accumulated, alone, at_outputs, scales)

    def alone_measurement(self, part: Sequence[Chain]) -> AloneMeasurement:
        """Open the FP32 graph with the Q/DQ graph's chains of some sites beside its own."""
        return AloneMeasurement(self.fp32_path, self.align(), part, self.sides, self.threads)

    def raised_noise(self, raised: Sequence[Site], part: slice) -> float:
        """Return the relative noise of the outputs with FP32's products at some sites."""
        reference = open_targets(self.fp32_path, self.sites, self.threads)
        session, _ = raised_session(
            self.quantized_path, self.align(), raised, self.sites, self.threads
        )
        return measure_raised(reference, session, partial(self.fed, part))

    def raised_bytes(self, raised: Sequence[Site]) -> int:
        """Return the bytes of the FP32 constants that come into the graph for raised sites."""
        aligned = self.align()
        chains = (find_chain(aligned.graph, site, aligned.ends[site.name]) for site in raised)
        return sum(chain.nbytes for chain in chains)


def measure_raises(
    graphs: Mapping[str, QuantizedGraph],
    order: Sequence[Site],
    progress: Progress,
) -> list[float | None]:
    """Return the model's relative noise with none, the first, the first two, ... sites raised.

    On the second half of the runs, which the order was not chosen on. None: the products of FP32
    would take more memory than a changed graph may.
    """
    noise = {
        name: each.raised_noise((), each.feeds.halves(name)[1]) for name, each in graphs.items()
    }
    found: list[float | None] = [mean(noise.values())]
    fits = True
    for count in range(1, len(order) + 1):
        name = order[count - 1].graph
        raised = [site for site in order[:count] if site.graph == name]
        own = graphs[name]
        fits = fits and own.raised_bytes(raised) <= own.part_bytes
        if fits:
            noise[name] = own.raised_noise(raised, own.feeds.halves(name)[1])
        found.append(mean(noise.values()) if fits else None)
        progress("measuring what is raised", count, len(order))
    return found


def mean(values: Iterable[float]) -> float:
    """Return the mean; infinite where a value is."""
    found = list(values)
    return math.inf if math.inf in found else math.fsum(found) / len(found)


def relative_db(noise: float | None) -> float | None:
    """Return a relative noise as a signal to noise ratio in dB; None: no error, or no measure."""
    if noise is None or not 0 < noise < math.inf:
        return None
    return -10 * math.log10(noise)
