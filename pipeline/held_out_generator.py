"""What a quantized generator is validated on: pictures of a seed that calibration did not use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..artifacts import Manifest, sha256_file
from ..errors import CalibrationError
from ..recipe import ValidateOptions
from ..runtime.generator import (
    FULL,
    SPEC_FILE,
    Generated,
    Generator,
    Spec,
    choose_sampling,
    read_spec,
)
from ..runtime.image_sources import ImageSource, open_source
from ..runtime.sessions.onnxruntime import fast_session, reference_session
from ..validate.forced import ForcedGraph, ForcedRun, measure_forced
from ..validate.generation import GeneratorAccuracy
from ..validate.latency import ratio, timed_parts
from ..validate.pictures import Batch, Images, measure_pictures
from ..validate.report import QDQ, LatencyRow
from .calibration_sources import image_digests
from .common import load_sites
from .generate import parse_labels
from .generated_samples import Tokens, pictures_of, teacher_forcing
from .held_out import ENGINE, Measured, Progress, check_pictures, shared_names
from .image_tokens import image_labels, image_tokens, require_size
from .picture_features import open_features
from .probing import probe, site_outputs, unfolding

KEPT_PICTURES = 8
FULL_FILE = f"{FULL}.onnx"
Folders = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class HeldOutGenerator:
    """Pictures of a generator's own, and its or the user's tokens to be given to the full graph."""

    export: Path
    spec: Spec
    labels: tuple[int, ...]
    source: ImageSource | None
    image_classes: tuple[int, ...]
    options: ValidateOptions
    noun: str = "pictures"

    @classmethod
    def open(cls, export: Path, exported: Manifest, options: ValidateOptions) -> HeldOutGenerator:
        """Check all that is given.

        Raises:
            CalibrationError: feeds, images that cannot be used or have no classes.
            GenerationError: a label out of range.
            RecipeError: a feature network that cannot be used.
        """
        check_pictures(options)
        if FULL_FILE not in exported.outputs:
            raise CalibrationError(
                f"{exported.options['model']} has no teacher-forced graph: it cannot be validated",
                do="validate a VAR, a RAR or a PAR",
            )
        _, spec = read_spec(export)
        given = options.labels or f"0-{spec.num_classes - 1}"
        labels = islice(cycle(parse_labels([given], spec.num_classes)), options.samples)
        source, classes = None, []
        if options.images is not None:
            source = open_source(options.images)
            classes = image_labels(source, options.labels, spec.num_classes)
            require_size(source, spec.image_size)
        open_features(export, options.features, spec.image_size, options.threads)
        return cls(export, spec, tuple(labels), source, tuple(classes), options)

    @property
    def picture_names(self) -> tuple[str, ...]:
        seed = self.options.seed
        return tuple(f"seed {seed}, picture {k}, class {c}" for k, c in enumerate(self.labels))

    @property
    def names(self) -> tuple[str, ...]:
        """Of what the full graph is given."""
        return self.source.names if self.source else self.picture_names

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.source.skipped if self.source else ()

    @property
    def digests(self) -> Mapping[str, str]:
        found = image_digests(self.source)
        network = self.options.features
        return found | ({"features": sha256_file(Path(network))} if network else {})

    def leaked(self, calibrated: Manifest) -> list[str]:
        """What calibration has seen too."""
        own = pictures_of(self.options.seed)
        return shared_names((*self.names, own), calibrated)

    @property
    def sampling(self) -> dict[str, float]:
        """The model's own, and the seed, as reports have it."""
        drawn = asdict(choose_sampling(self.spec))
        return {"seed": self.options.seed} | {
            name: value for name, value in drawn.items() if value is not None and name != "greedy"
        }

    def measure(self, export: Path, folders: Folders, progress: Progress) -> Measured:
        """Pictures of FP32 and each candidate, then their graphs on FP32's tokens or the user's."""
        made: list[Tokens] = []
        generates = {n: f for n, f in folders.items() if (f / SPEC_FILE).is_file()}
        threads, size = self.options.threads, self.spec.image_size
        pictures, kept = measure_pictures(
            self.picture_names,
            remembered(self._batches(self._reference(export)), made),
            {n: batches(self._batches(self._open(n, f))) for n, f in generates.items()},
            networks=open_features(export, self.options.features, size, threads),
            others=self._others(export),
            keep=KEPT_PICTURES,
            progress=lambda done: progress("comparing pictures", done, len(self.labels)),
        )
        forced = {n: f for n, f in folders.items() if (f / FULL_FILE).is_file()}
        graph = forced_graph(export, folders[QDQ], forced, threads)
        found = measure_forced(
            self._runs(export, np.concatenate(made)),
            {FULL: graph},
            lambda done: progress("comparing logits", done, self._rows * len(self.names)),
        )
        generation = {
            name: msgspec.structs.replace(
                found.get(name, GeneratorAccuracy()), pictures=pictures.get(name)
            )
            for name in folders
            if name in found or name in pictures
        }
        return Measured(
            generation=generation,
            latency=self._latency(export, folders),
            pictures=kept,
            picture_names=self.picture_names,
            sampling=self.sampling,
        )

    def _latency(self, export: Path, folders: Folders) -> dict[str, LatencyRow]:
        """The loops of FP32 and the engine in turn, a batch of pictures a round."""
        if ENGINE not in folders or not self.options.rounds:
            return {}
        generators = {
            "fp32": self._open(ENGINE, export),
            ENGINE: self._open(ENGINE, folders[ENGINE]),
        }
        labels = self.labels[: self.options.batch_size]
        found = timed_parts(
            {name: partial(timed_loop, made, labels) for name, made in generators.items()},
            warmup=self.options.warmup,
            rounds=self.options.rounds,
        )
        side = self.spec.image_size
        return {
            part: LatencyRow(
                fp32=times["fp32"],
                engine=times[ENGINE],
                speed=ratio(times["fp32"], times[ENGINE]),
                shape=(len(labels), 3, side, side),
                batch=len(labels),
                threads=self.options.threads,
                tokens=len(labels) * self.spec.length if part in ("total", "tokens") else None,
            )
            for part, times in found.items()
        }

    def _reference(self, folder: Path) -> Generator:
        return Generator.open(folder, session=reference_session, threads=self.options.threads)

    def _open(self, name: str, folder: Path) -> Generator:
        """An engine as it is executed, any other graphs without rewrites."""
        if name == ENGINE:
            return Generator.open(folder, threads=self.options.threads)
        return self._reference(folder)

    def _batches(self, generator: Generator, seed: int | None = None) -> Iterator[Generated]:
        return generator.batches(
            self.labels,
            seed=self.options.seed if seed is None else seed,
            sampling=choose_sampling(self.spec),
            batch_size=self.options.batch_size,
        )

    def _others(self, export: Path) -> Iterator[Images]:
        """FP32's pictures of the next seed."""
        for made in self._batches(self._reference(export), self.options.seed + 1):
            yield made.images

    def _runs(self, export: Path, made: NDArray[Any]) -> Iterator[ForcedRun]:
        """One row at a time, so that all that sites give fits in memory."""
        force = teacher_forcing(export)
        if self.source is None:
            tokens: Iterator[NDArray[Any]] = (made[k : k + 1] for k in range(len(made)))
            classes: Sequence[int] = self.labels
        else:
            tokens = image_tokens(export, self.spec, self.source, self.options.threads)
            classes = self.image_classes
        for name, label, own in zip(self.names, classes, tokens, strict=True):
            forced = force(own)
            for row in (label, self.spec.num_classes)[: self._rows]:
                yield ForcedRun(
                    name=name,
                    graph=FULL,
                    feeds={"labels": np.array([row], np.int64), **forced},
                    tokens=own,
                    conditional=np.array([row != self.spec.num_classes]),
                )

    @property
    def _rows(self) -> int:
        """Of the full graph for each picture: with its class and, under guidance, without."""
        return 1 + (choose_sampling(self.spec).cfg > 0)


def timed_loop(generator: Generator, labels: Sequence[int]) -> dict[str, float]:
    """Seconds that a batch of pictures takes: its tokens, up to the last step, and the decoder."""
    ticks = [time.perf_counter()]
    start = ticks[0]
    generator.generate(
        labels, batch_size=len(labels), progress=lambda *_: ticks.append(time.perf_counter())
    )
    end = time.perf_counter()
    return {"total": end - start, "tokens": ticks[-1] - start, "decoder": end - ticks[-1]}


def remembered(made: Iterator[Generated], tokens: list[Tokens]) -> Iterator[Batch]:
    """Batches as they are compared, whose tokens are put into the list."""
    for batch in made:
        tokens.append(batch.tokens)
        yield batch.images, batch.tokens


def batches(made: Iterator[Generated]) -> Iterator[Batch]:
    for batch in made:
        yield batch.images, batch.tokens


def forced_graph(export: Path, quantized: Path, folders: Folders, threads: int) -> ForcedGraph:
    """The full graphs, all but the engine's with the outputs of their sites."""
    sites = load_sites(export).of_graph(FULL)
    tensors = list(site_outputs(sites).values())
    restore = unfolding(quantized / FULL_FILE, sites)
    return ForcedGraph(
        reference=probe(export / FULL_FILE, tensors, threads),
        candidates={
            name: fast_session(folder / FULL_FILE, threads)
            if name == ENGINE
            else probe(folder / FULL_FILE, tensors, threads)
            for name, folder in folders.items()
        },
        outputs=("logits",),
        sites=site_outputs(sites),
        restore={name: restore for name in folders if name != ENGINE},
    )
