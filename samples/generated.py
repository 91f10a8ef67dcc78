"""What a generator is calibrated on: its own pictures or images, as its graphs are fed them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..recipe.options import CalibrateOptions
from ..runtime.generator import BATCH_SIZE, Generator, choose_sampling, read_spec
from ..runtime.labels import parse_labels
from ..runtime.recording import Trajectories
from ..runtime.sessions.onnxruntime import fast_session
from ..runtime.spec import TEACHER_FORCED
from ..workspace.stage import Reporter
from .classes import drawn_classes
from .encoded import image_labels, image_tokens, require_size
from .files import Array, Sample
from .images import ImageSource

Tokens = NDArray[np.int32] | NDArray[np.float32]


def pictures_of(seed: int) -> str:
    """What manifests and reports call a model's own pictures."""
    return f"generated from seed {seed}"


def check_generated(options: CalibrateOptions) -> None:
    """Raises CalibrationError for sources that are not a generator's."""
    for name in ("feeds", "synthetic"):
        if getattr(options, name):
            raise CalibrationError(
                "a generator is calibrated on what it generates itself, or on images",
                where=f"--{name}",
                do="leave it out; --labels says which classes",
            )


def generated_rows(
    export: Path,
    options: CalibrateOptions,
    reporter: Reporter,
    *,
    part: range | None = None,
    threads: int = 0,
) -> Iterator[Sample]:
    """What the calibrated graphs are fed for pictures of the model's own.

    A row of the full graph a sample: of each picture the conditional one, and under guidance that
    of the null class with the same tokens. A family without such a graph is calibrated along its
    trajectory. The labels are the given ones in turn, or drawn of all classes; the seed decides
    the pictures. Of the pictures all are made, or `part`.

    Raises:
        GenerationError: a label out of range.
    """
    _, spec = read_spec(export)
    sampling = choose_sampling(spec)
    part = range(options.pool) if part is None else part
    chosen_labels = picture_labels(export, options)[part.start : part.stop]
    null = spec.num_classes if sampling.cfg > 0 else None

    def tick(done: int, total: int) -> None:
        reporter.progress("generating samples", done, total)

    recording = spec.recording
    if recording is not None:
        asked = Trajectories(
            export=export,
            labels=chosen_labels,
            sampling=sampling,
            seed=options.seed,
            batch_size=BATCH_SIZE,
            first=part.start,
            threads=threads,
            progress=tick,
        )
        for _, runs in recording.generated(asked):
            yield from (run for _, run in runs)
        return
    force = teacher_forcing(export)
    generator = Generator.open(export, threads=threads)
    batches = generator.batches(
        chosen_labels, seed=options.seed, sampling=sampling, first=part.start, progress=tick
    )
    for batch in batches:
        yield from forced_rows(force(batch.tokens), batch.labels, null)


def picture_labels(export: Path, options: CalibrateOptions) -> list[int]:
    """Classes of all pictures that are made, of whichever shard they are.

    Raises:
        GenerationError: a label out of range.
    """
    _, spec = read_spec(export)
    if options.labels is None:
        return drawn_classes(spec.num_classes, options.pool, options.seed)
    return list(islice(cycle(parse_labels([options.labels], spec.num_classes)), options.pool))


def encoded_rows(
    export: Path,
    source: ImageSource,
    options: CalibrateOptions,
    *,
    part: range,
    threads: int = 0,
) -> Iterator[Sample]:
    """As `generated_rows`, of the images `part` through the generator's own tokenizer.

    Raises:
        CalibrationError: no labels, neither one nor one an image, or images that are too small.
        GenerationError: a label out of range.
    """
    _, spec = read_spec(export)
    labels = image_labels(source, options.labels, spec.num_classes)
    require_size(source, spec.image_size)
    recording = spec.recording
    if recording is not None:
        return recording.encoded(
            export, source.load, labels, part=part, seed=options.seed, threads=threads
        )
    null = spec.num_classes if choose_sampling(spec).cfg > 0 else None
    chosen = slice(part.start, part.stop)
    force = teacher_forcing(export)
    found = image_tokens(export, spec, ImageSource(source.files[chosen]), threads)
    return (
        row
        for tokens, label in zip(found, labels[chosen], strict=True)
        for row in forced_rows(force(tokens), [label], null)
    )


def forced_rows(
    forced: Mapping[str, Array], labels: Iterable[int], null: int | None
) -> Iterator[dict[str, Array]]:
    """Of each picture the row of its label, and that of the null class where there is one."""
    for k, label in enumerate(labels):
        row = {name: values[k : k + 1] for name, values in forced.items()}
        for held in (label, null):
            if held is not None:
                yield {"labels": np.array([held], np.int64), **row}


def teacher_forcing(export: Path) -> Callable[[Tokens], dict[str, Array]]:
    """What makes the full graph's inputs beside the labels from the tokens [N, L] of pictures.

    They are `features`, which lookup.onnx makes, or `tokens`, as many as the graph takes.
    """
    from ..graph.io import load_graph

    inputs = {str(v.name): v for v in load_graph(export / f"{TEACHER_FORCED}.onnx").graph.inputs}
    if "features" in inputs:
        lookup = fast_session(export / "lookup.onnx")
        return lambda tokens: lookup.run({"indices": tokens}, ["features"])
    shape = inputs["tokens"].shape
    assert shape is not None
    count = shape.numpy()[1] if shape.is_static() else shape[1]
    assert isinstance(count, int)
    return lambda tokens: {"tokens": tokens[:, :count].astype(np.int64)}
