"""A user's own graphs measured on arrays, run one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...recipe.validate import ValidateOptions
from ...runtime.folders import opener
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.sessions.session import fallbacks
from ...samples.arrays import ArraySamples
from ...samples.base import SampleSource
from ...samples.files import GraphChain
from ...samples.sources import held_out_arrays
from ...workspace.facts import Exported, custom_graphs
from ..machine.watch import MachineLoad
from ..metrics.outputs import measure_outputs
from ..opinion.feeds import SAMPLES, Feeds, chain_feeds
from ..report.schema import ENGINE, LatencyRow, Part
from .measurement import Folders, Measurements, Progress, timed, watch


@dataclass(frozen=True, slots=True)
class CustomMeasurement:
    """Outputs of FP32 and each candidate for the same `arrays`."""

    model: Exported
    arrays: ArraySamples
    options: ValidateOptions
    noun: str = "samples"

    @classmethod
    def open(cls, model: Exported, options: ValidateOptions) -> CustomMeasurement:
        """Raises CalibrationError as `held_out_arrays` does."""
        return cls(model, held_out_arrays(model, options), options)

    @property
    def names(self) -> tuple[str, ...]:
        return self.arrays.names

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        return (self.arrays,)

    @property
    def digests(self) -> Mapping[str, str]:
        return self.arrays.digests

    def run(self, folders: Folders, progress: Progress, device: str = "cpu") -> Measurements:
        export, threads = self.model.folder, self.options.threads
        graphs = [graph.name for graph in custom_graphs(self.model.manifest)]

        def open_placed(folder: Path) -> GraphChain:
            allowed = self.options.allow_fallback
            placed = opener(folder, fast_session, device, allow_fallback=allowed)
            return GraphChain.open(folder, graphs, session=placed, threads=threads)

        chains = {
            name: open_placed(folder)
            if name == ENGINE
            else GraphChain.open(folder, graphs, session=reference_session)
            for name, folder in folders.items()
        }
        outputs = measure_outputs(
            zip(self.names, self.arrays.feeds(), strict=True),
            GraphChain.open(export, graphs, session=reference_session),
            chains,
            lambda done: progress("validating samples", done, len(self.names)),
        )
        # Sessions that are measured no more would keep their memory.
        chains = {name: chain for name, chain in chains.items() if name == ENGINE}
        latency: dict[Part, LatencyRow] = {}
        machine: MachineLoad | None = None
        if ENGINE in chains and self.options.rounds:
            sample = next(self.arrays.feeds())
            fp32 = open_placed(export)
            pair = {"fp32": lambda: fp32.run(sample), ENGINE: lambda: chains[ENGINE].run(sample)}
            shape = next(iter(sample.values())).shape
            with watch(device) as watched:
                latency = {"total": timed(pair, shape, self.options)}
            machine = watched.found
        engine = chains[ENGINE].sessions.values() if ENGINE in chains else ()
        return Measurements(
            outputs=outputs,
            latency=latency,
            machine=machine,
            fallbacks=fallbacks(engine),
            feeds=self._feeds(graphs),
            sample=dict(next(self.arrays.feeds())),
        )

    def _feeds(self, graphs: Sequence[str]) -> Feeds:
        """Return what the graphs are fed with the first samples, for a second opinion."""
        if not self.options.second_opinion:
            return {}
        chain = GraphChain.open(self.model.folder, graphs, session=reference_session)
        return chain_feeds(chain, islice(self.arrays.feeds(), SAMPLES))
