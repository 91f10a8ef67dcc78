"""A generator measured on images of a seed that calibration did not use, and graph by graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ...engines.tensorrt.half_precision_files import write_half_precision
from ...graph.sites import load_sites
from ...numerics.scheme import Plan
from ...quantize.facts import QuantizationFacts
from ...recipe.validate import ValidateOptions
from ...runtime.families import SPEC_FILE
from ...runtime.folders import opener
from ...runtime.generator import Generator, choose_sampling
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.sessions.session import OpenSession
from ...runtime.spec import DECODER, TEACHER_FORCED, GeneratorSpec
from ...samples.base import SampleSource
from ...samples.decoded import decoder_feeds
from ...samples.encoded import EncodedImages
from ...samples.forcing import Tokens
from ...samples.generated import GeneratedSamples
from ...samples.sources import held_out_images
from ...workspace.facts import Exported, facts
from ...workspace.files import decode_json
from ...workspace.manifest import MANIFEST, Manifest
from ..generation_memory import GenerationMemory, generation_memory
from ..machine.watch import MachineLoad
from ..metrics.latency import ratio, timed_parts
from ..opinion.feeds import Feeds, decoder_runs, forced_feeds, noted
from ..quality.open import check_networks, network_digests
from ..quality.reconstruction import Pair, open_pairs
from ..report.schema import ENGINE, FP32, HALF_PRECISION, QDQ, LatencyRow, Part
from .features import open_features
from .generated_images import (
    Decode,
    Features,
    Images,
    batches,
    decoded_images,
    measure_generated_images,
)
from .generator_accuracy import GeneratorAccuracy
from .measurement import Folders, Measurements, Progress, timed_loop, watch
from .teacher_forcing import measure_teacher_forced
from .teacher_forcing_runs import TeacherForcing, TokenForcing, TrajectoryForcing, compared_graphs

KEPT_PICTURES = 8


@dataclass(frozen=True, slots=True)
class GeneratorMeasurement:
    """Images that FP32 and each candidate generate, then their graphs fed alike.

    What the teacher-forced graph is fed are these images, or the user's own `images`. `networks`
    give the features whose Frechet distance is measured.
    """

    export: Path
    generated: GeneratedSamples
    images: EncodedImages | None
    networks: tuple[Features, ...]
    pairs: Mapping[str, Pair]
    options: ValidateOptions
    noun: str = "images"

    @classmethod
    def open(
        cls, model: Exported, options: ValidateOptions, seen: Collection[int] = ()
    ) -> GeneratorMeasurement:
        """Check all that is given; `seen` are classes that calibration has seen.

        Raises:
            CalibrationError: feeds, images that cannot be used or have no classes, or no file of a
                feature network.
            GenerationError: a label out of range.
            RecipeError: a feature network that cannot be used.
        """
        generated, images = held_out_images(model, options, seen)
        check_networks(options)
        side = generated.spec.image_size
        networks = open_features(model.folder, options.features, side, options.threads)
        pairs = open_pairs(options, side)
        return cls(model.folder, generated, images, tuple(networks), pairs, options)

    @property
    def names(self) -> tuple[str, ...]:
        return self.generated.image_names if self.images is None else self.images.names

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        return (self.generated,) if self.images is None else (self.generated, self.images)

    @property
    def digests(self) -> Mapping[str, str]:
        images = {} if self.images is None else self.images.digests
        return {**images, **network_digests(self.options)}

    @property
    def _spec(self) -> GeneratorSpec:
        return self.generated.spec

    @property
    def sampling(self) -> dict[str, float]:
        """Return the model's own sampling and the seed, as reports have them."""
        drawn = asdict(choose_sampling(self._spec))
        foreign = {"greedy"} if self._spec.vocab_size else {"greedy", "top_k", "top_p"}
        return {"seed": self.options.seed} | {
            name: value
            for name, value in drawn.items()
            if value is not None and name not in foreign
        }

    def run(self, folders: Folders, progress: Progress, device: str = "cpu") -> Measurements:
        """Compare images of FP32 and each candidate, then their graphs under teacher forcing."""
        generators = {
            name: self._open(name, folder, device)
            for name, folder in folders.items()
            # The half-precision copy is measured by its graphs alone.
            if name == ENGINE or (name != HALF_PRECISION and (folder / SPEC_FILE).is_file())
        }
        labels, names = self.generated.labels, self.generated.image_names
        first: list[Tokens] = []
        with TemporaryDirectory() as scratch:
            forcing = self._forcing(Path(scratch))
            folders = with_full_half_precision(self.export, folders, Path(scratch) / HALF_PRECISION)
            pictures, kept = measure_generated_images(
                names,
                noted(forcing.batches(), first),
                {
                    name: batches(self.generated.batches(generator))
                    for name, generator in generators.items()
                },
                decoders=self._decoders(folders, device),
                networks=self.networks,
                pairs=self.pairs,
                others=self._others(),
                keep=KEPT_PICTURES,
                progress=lambda done: progress("comparing images", done, len(labels)),
            )
            graphs = compared_graphs(
                self.export,
                folders,
                forcing.outputs,
                self.options.threads,
                self._engine_graphs(folders, device),
            )
            found = measure_teacher_forced(
                forcing.runs(),
                graphs,
                lambda done: progress("comparing graphs", done, forcing.count),
            )
            feeds: Feeds = {}
            if self.options.second_opinion:
                decoder = decoder_feeds(self.export, self._spec, self.options.threads)
                feeds = forced_feeds(forcing.runs(), graphs)
                feeds[DECODER] = decoder_runs(decoder, first)
        generation = {
            name: msgspec.structs.replace(
                found.get(name, GeneratorAccuracy()), pictures=pictures.get(name)
            )
            for name in folders
            if name in found or name in pictures
        }
        latency, machine = self._latency(generators.get(ENGINE), device)
        return Measurements(
            generation=generation,
            latency=latency,
            machine=machine,
            memory=self._memory(folders, generators, device),
            feeds=feeds,
            pictures=kept,
            picture_names=names,
            sampling=self.sampling,
            classes=tuple(sorted(set(labels))),
            fallbacks=generators[ENGINE].fallbacks if ENGINE in generators else (),
        )

    def _latency(
        self, engine: Generator | None, device: str
    ) -> tuple[dict[Part, LatencyRow], MachineLoad | None]:
        """Time the loops of FP32 and the engine in turn, a batch of images a round.

        The engine is the one that made the images: a second would take its memory twice.
        """
        if engine is None or not self.options.rounds:
            return {}, None
        generators = {"fp32": self._open(ENGINE, self.export, device), ENGINE: engine}
        labels = self.generated.labels[: self.options.batch_size]
        with watch(device) as watched:
            found = timed_parts(
                {name: partial(timed_loop, made, labels) for name, made in generators.items()},
                warmup=self.options.warmup,
                rounds=self.options.rounds,
            )
        rows: dict[Part, LatencyRow] = {
            part: LatencyRow(
                fp32=times["fp32"],
                engine=times[ENGINE],
                speed=ratio(times["fp32"], times[ENGINE]),
                shape=(len(labels), 3, *[self._spec.image_size] * 2),
                batch=len(labels),
                threads=self.options.threads,
                tokens=len(labels) * self._spec.length if part in ("total", "tokens") else None,
            )
            for part, times in found.items()
        }
        return rows, watched.found

    def _memory(
        self, folders: Folders, generators: Mapping[str, Generator], device: str
    ) -> dict[str, GenerationMemory]:
        """Measure FP32 and the headline candidate, a batch each, where times are measured too."""
        headline = next((name for name in (ENGINE, QDQ) if name in generators), None)
        if headline is None or not self.options.rounds or device != "cpu":
            return {}
        labels = self.generated.labels[: self.options.batch_size]
        return {
            name: generation_memory(folder, labels, self.options.threads)
            for name, folder in ((FP32, self.export), (headline, folders[headline]))
        }

    def _reference(self, folder: Path) -> Generator:
        return Generator.open(folder, session=reference_session, threads=self.options.threads)

    def _open(self, name: str, folder: Path, device: str) -> Generator:
        """Open an engine as it is executed, any other graphs without rewrites."""
        if name != ENGINE:
            return self._reference(folder)
        return Generator.open(
            folder,
            device=device,
            allow_fallback=self.options.allow_fallback,
            threads=self.options.threads,
        )

    def _engine_graphs(self, folders: Folders, device: str) -> OpenSession:
        """Return what opens single graphs of the engine as it is executed."""
        if ENGINE not in folders:
            return fast_session
        allowed = self.options.allow_fallback
        return opener(folders[ENGINE], fast_session, device, allow_fallback=allowed)

    def _decoders(self, folders: Folders, device: str) -> dict[str, Decode]:
        """Return the image decoders that were quantized, as Q/DQ graph and in the engine."""
        sites = {site.name for site in load_sites(self.export).of_graph(DECODER)}
        plan = decode_json(folders[QDQ] / "plan.json", Plan, do="run `arvg-trt quantize` again")
        if not any(entry.weight for entry in plan.sites if entry.name in sites):
            return {}
        engine = self._engine_graphs(folders, device)
        openers: dict[str, OpenSession] = {QDQ: reference_session, ENGINE: engine}
        sessions = {
            name: open_graph(folders[name] / f"{DECODER}.onnx", self.options.threads)
            for name, open_graph in openers.items()
            if name in folders
        }
        feeds = decoder_feeds(self.export, self._spec, self.options.threads)
        return {name: partial(decoded_images, feeds, each) for name, each in sessions.items()}

    def _others(self) -> Iterator[Images]:
        """Return FP32's images of the next seed."""
        made = self.generated.batches(self._reference(self.export), self.options.seed + 1)
        return (each.images for each in made)

    def _forcing(self, folder: Path) -> TeacherForcing:
        """Choose tokens for a graph of all positions, or runs of a family that records them."""
        if self._spec.recording is not None:
            return TrajectoryForcing(self.generated, self._spec.recording, folder)
        return TokenForcing(self.generated, self.images)


def with_full_half_precision(export: Path, folders: Folders, made: Path) -> Folders:
    """Return `folders`; half-precision copies get one of the teacher-forced graph, in `made`.

    Nothing is built from it, so that it lies beside no engine; nodes and weights are the steps'.
    """
    quantized = folders[QDQ]
    if HALF_PRECISION not in folders or not (quantized / f"{TEACHER_FORCED}.onnx").is_file():
        return folders
    manifest = decode_json(quantized / MANIFEST, Manifest, do="run `arvg-trt quantize` again")
    made.mkdir()
    sites = load_sites(export).of_graph(TEACHER_FORCED)
    write_half_precision(
        quantized,
        TEACHER_FORCED,
        sites,
        made,
        facts(manifest, QuantizationFacts).fp32_tensors,
        "float16",
    )
    return {**folders, HALF_PRECISION: made}
