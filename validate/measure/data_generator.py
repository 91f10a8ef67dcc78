"""What a quantized generator is validated on: pictures of a seed that calibration did not use."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ...engines.tensorrt.half_precision_files import write_half_precision
from ...errors import CalibrationError
from ...graph.sites import load_sites
from ...quantize.facts import QuantizationFacts
from ...recipe.options import ValidateOptions
from ...runtime.generator import SPEC_FILE, Generated, Generator, choose_sampling, read_spec
from ...runtime.labels import parse_labels
from ...runtime.sessions.onnxruntime import reference_session
from ...runtime.spec import TEACHER_FORCED, GeneratorSpec
from ...samples.classes import drawn_classes
from ...samples.encoded import image_labels, require_size
from ...samples.generated import pictures_of
from ...samples.images import ImageSource, open_source
from ...samples.sources import image_digests
from ...workspace.facts import facts
from ...workspace.files import decode_json, sha256_file
from ...workspace.manifest import MANIFEST, Manifest
from ..metrics.latency import ratio, timed_parts
from ..report.schema import HALF_PRECISION, QDQ, LatencyRow
from .data import ENGINE, Measurements, Progress, check_pictures, shared_names
from .features import open_features
from .generator import GeneratorAccuracy
from .images import Batch, Images, measure_generated_images
from .teacher_forcing import measure_teacher_forced
from .teacher_forcing_runs import (
    GenerationRequest,
    TeacherForcing,
    TokenForcing,
    TrajectoryForcing,
    compared_graphs,
)

KEPT_PICTURES = 8
Folders = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class HeldOutGenerator:
    """Pictures of a generator's own, and its or the user's tokens to be given to the full graph."""

    export: Path
    spec: GeneratorSpec
    labels: tuple[int, ...]
    source: ImageSource | None
    image_classes: tuple[int, ...]
    options: ValidateOptions
    noun: str = "pictures"

    @classmethod
    def open(
        cls,
        export: Path,
        exported: Manifest,
        options: ValidateOptions,
        calibrated: Collection[int] = (),
    ) -> HeldOutGenerator:
        """Check all that is given; `calibrated` are classes that calibration has seen.

        Raises:
            CalibrationError: feeds, images that cannot be used or have no classes.
            GenerationError: a label out of range.
            RecipeError: a feature network that cannot be used.
        """
        check_pictures(options)
        _, spec = read_spec(export)
        if spec.recording is not None and options.images is not None:
            raise CalibrationError(
                f"{exported.options['model']} is validated along its own trajectory",
                where="--images",
                do="leave it out",
            )
        if options.labels is None:
            labels = drawn_classes(spec.num_classes, options.samples, options.seed, calibrated)
        else:
            given = parse_labels([options.labels], spec.num_classes)
            labels = list(islice(cycle(given), options.samples))
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
        foreign = {"greedy"} if self.spec.vocab_size else {"greedy", "top_k", "top_p"}
        return {"seed": self.options.seed} | {
            name: value
            for name, value in drawn.items()
            if value is not None and name not in foreign
        }

    def measure(self, export: Path, folders: Folders, progress: Progress) -> Measurements:
        """Pictures of FP32 and each candidate, then their graphs on what `Forcing` gives both."""
        generates = {n: f for n, f in folders.items() if (f / SPEC_FILE).is_file()}
        threads, size = self.options.threads, self.spec.image_size
        with TemporaryDirectory() as scratch:
            forcing = self._teacher_forcing(Path(scratch))
            folders = with_full_half_precision(export, folders, Path(scratch) / HALF_PRECISION)
            pictures, kept = measure_generated_images(
                self.picture_names,
                forcing.batches(),
                {n: batches(self._request.batches(self._open(n, f))) for n, f in generates.items()},
                networks=open_features(export, self.options.features, size, threads),
                others=self._others(export),
                keep=KEPT_PICTURES,
                progress=lambda done: progress("comparing pictures", done, len(self.labels)),
            )
            found = measure_teacher_forced(
                forcing.runs(),
                compared_graphs(export, folders, forcing.outputs, threads),
                lambda done: progress("comparing graphs", done, forcing.count),
            )
        generation = {
            name: msgspec.structs.replace(
                found.get(name, GeneratorAccuracy()), pictures=pictures.get(name)
            )
            for name in folders
            if name in found or name in pictures
        }
        return Measurements(
            generation=generation,
            latency=self._latency(export, folders),
            pictures=kept,
            picture_names=self.picture_names,
            sampling=self.sampling,
            classes=tuple(sorted(set(self.labels))),
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

    @property
    def _request(self) -> GenerationRequest:
        return GenerationRequest(
            self.export, self.spec, self.labels, self.options, self.picture_names
        )

    def _others(self, export: Path) -> Iterator[Images]:
        """FP32's pictures of the next seed."""
        for made in self._request.batches(self._reference(export), self.options.seed + 1):
            yield made.images

    def _teacher_forcing(self, folder: Path) -> TeacherForcing:
        """A family with a graph of all positions is given tokens, others runs of trajectories."""
        if self.spec.recording is not None:
            return TrajectoryForcing(self._request, self.spec.recording, folder)
        return TokenForcing(self._request, self.source, self.image_classes)


def timed_loop(generator: Generator, labels: Sequence[int]) -> dict[str, float]:
    """Seconds that a batch of pictures takes: its tokens, up to the last step, and the decoder."""
    ticks = [time.perf_counter()]
    start = ticks[0]
    generator.generate(
        labels, batch_size=len(labels), progress=lambda *_: ticks.append(time.perf_counter())
    )
    end = time.perf_counter()
    return {"total": end - start, "tokens": ticks[-1] - start, "decoder": end - ticks[-1]}


def batches(made: Iterator[Generated]) -> Iterator[Batch]:
    for batch in made:
        yield batch.images, batch.tokens


def with_full_half_precision(
    export: Path, folders: Mapping[str, Path], made: Path
) -> Mapping[str, Path]:
    """Add the half-precision copy of all positions, in `made`, to `folders` of engines with copies.

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
