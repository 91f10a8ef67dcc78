"""One measurement of a quantization, whatever the model: its samples, and what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...recipe.validate import ValidateOptions
from ...runtime.devices import this_device
from ...runtime.generator import Generator
from ...runtime.sessions.placement import gpu_of
from ...samples.base import SampleSource
from ..generation_memory import GenerationMemory
from ..machine.watch import MachineLoad, Watch
from ..metrics.latency import interleaved, ratio
from ..metrics.outputs import OutputAccuracy
from ..report.schema import ENGINE, LatencyRow, Part
from .generator_accuracy import GeneratorAccuracy
from .tokenizer_accuracy import CandidateAccuracy, ComparedImage

Folders = Mapping[str, Path]  # of graphs, by candidate
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Parts of a report by candidate; which ones depends on the kind of model.

    `accuracy` is of an image tokenizer, `outputs` of a user's own graphs, `generation` of a
    generator, with the names and classes of the images that it generated and how, and the `memory`
    that FP32 and the headline take meanwhile. `machine` says what else ran while `latency` was
    timed. `feeds` are what graphs were fed with the first samples, by graph, where a second
    opinion is asked for; `sample` is the first one, of a user's own graphs. `fallbacks` say what
    of the engine ran on the CPU instead of the GPU.
    """

    accuracy: dict[str, CandidateAccuracy] = field(default_factory=dict)
    outputs: dict[str, tuple[OutputAccuracy, ...]] = field(default_factory=dict)
    generation: dict[str, GeneratorAccuracy] = field(default_factory=dict)
    latency: dict[Part, LatencyRow] = field(default_factory=dict)
    pictures: list[ComparedImage] = field(default_factory=list)
    picture_names: tuple[str, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)
    classes: tuple[int, ...] = ()
    machine: MachineLoad | None = None
    fallbacks: tuple[str, ...] = ()
    memory: dict[str, GenerationMemory] = field(default_factory=dict)
    feeds: dict[str, list[dict[str, NDArray[np.generic]]]] = field(default_factory=dict)
    sample: dict[str, NDArray[np.generic]] = field(default_factory=dict)


class Measurement(Protocol):
    """A comparison of candidates with FP32 on samples that are open and were checked."""

    @property
    def noun(self) -> str:
        """Return the word for the samples in messages, in the plural."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each sample in reports."""
        ...

    @property
    def sources(self) -> tuple[SampleSource, ...]: ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Return the sha256 of each file that is read beside the graphs, by its name."""
        ...

    def run(self, folders: Folders, progress: Progress, device: str = "cpu") -> Measurements:
        """Compare the graphs in `folders` with those of the export.

        The engine, and FP32 where it is timed beside it, run on the `device`, all else on the CPU.

        Raises:
            BundleError: the engine, or a part of it, does not run there.
            AccuracyError: values that are not finite, or of another shape than FP32's.
        """
        ...


def watch(device: str) -> Watch:
    """Return what watches the machine, and the GPU that is used, while rounds are timed."""
    return Watch(gpu_of(device, this_device()))


def timed(
    pair: Mapping[str, Callable[[], object]], shape: tuple[int, ...], options: ValidateOptions
) -> LatencyRow:
    """Time FP32 and the engine in turn; `shape` is that of the array they are fed."""
    found = interleaved(pair, warmup=options.warmup, rounds=options.rounds)
    return LatencyRow(
        fp32=found["fp32"],
        engine=found[ENGINE],
        speed=ratio(found["fp32"], found[ENGINE]),
        shape=tuple(shape),
        batch=int(shape[0]) if shape else 1,
        threads=options.threads,
    )


def timed_loop(generator: Generator, labels: Sequence[int]) -> dict[Part, float]:
    """Return the seconds of a batch: of its tokens, up to the last step, and of the decoder."""
    ticks = [time.perf_counter()]
    start = ticks[0]
    generator.generate(
        labels, batch_size=len(labels), progress=lambda *_: ticks.append(time.perf_counter())
    )
    end = time.perf_counter()
    return {"total": end - start, "tokens": ticks[-1] - start, "decoder": end - ticks[-1]}
