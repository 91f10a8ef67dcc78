"""`generate`: labels to PNGs, a grid, the ADM evaluator's .npz and tokens."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from ..errors import GenerationError
from ..recipe.commands import GenerateOptions
from ..runtime.generator import Generated, Generator, check_labels, choose_sampling, verified_spec
from ..runtime.images import Uint8Image, image_grid, png_bytes
from ..runtime.labels import parse_labels
from ..runtime.sampling import Sampling
from ..workspace.files import atomic_stream, atomic_write
from ..workspace.stage import Reporter

SAMPLING = (
    "cfg",
    "top_k",
    "top_p",
    "temperature",
    "cfg_power",
    "iterations",
    "diffusion_steps",
)
MOST_IMAGES = 10**6
GRID_MOST = 100  # a picture of more says nothing


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Where to write: a folder of PNGs with their grid, the evaluator's .npz, tokens or latents."""

    folder: Path | None = None
    npz: Path | None = None
    tokens: Path | None = None


class GenerateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was made: every file, and the places that the user named."""

    labels: list[int]
    seed: int
    sampling: Sampling
    seconds: float
    files: list[Path]
    written: list[Path]


def generate_files(
    path: Path, options: GenerateOptions, outputs: Outputs, reporter: Reporter
) -> GenerateResult:
    """Generate with the graphs of a workspace, or of a stage's folder, and write what `outputs`
    names.

    PNGs are written as they come, each in one rename; the .npz files take their names at the end.

    Raises:
        GenerationError: labels or options out of range, nothing to write.
        WorkspaceError: the folder is not what its stage wrote.
        BundleError: it holds engines that no session here runs.
    """
    if outputs == Outputs():
        raise GenerationError("nowhere to write", do="give -o FOLDER, --npz FILE or --tokens FILE")
    _, spec = verified_spec(path)
    sampling = choose_sampling(
        spec, options.greedy, **{name: getattr(options, name) for name in SAMPLING}
    )
    classes = parse_labels(options.labels, spec.num_classes)
    require_few(len(classes) * options.count)
    labels = check_labels(spec, np.repeat(np.array(classes, np.int64), options.count))
    start = time.monotonic()
    generator = Generator.open(path, threads=options.threads)
    batches = generator.batches(
        labels,
        seed=options.seed,
        sampling=sampling,
        batch_size=options.batch_size,
        progress=partial(reporter.progress, "generating"),
    )
    shape = (len(labels), spec.image_size, spec.image_size, 3)
    columns = options.count if options.count > 1 else None  # a row a label
    files = write_batches(batches, shape, outputs, columns)
    return GenerateResult(
        labels=labels.tolist(),
        seed=options.seed,
        sampling=sampling,
        seconds=time.monotonic() - start,
        files=files,
        written=[p for p in (outputs.folder, outputs.npz, outputs.tokens) if p],
    )


def require_few(count: int) -> None:
    """Raises GenerationError for more images than a run can end with, before memory is taken."""
    if count > MOST_IMAGES:
        raise GenerationError(
            f"{count:,} images, and at most {MOST_IMAGES:,} are made at once",
            where="--count",
            do="ask for fewer, in runs of different seeds",
        )


def write_batches(
    batches: Iterator[Generated],
    shape: tuple[int, ...],
    outputs: Outputs,
    columns: int | None = None,
) -> list[Path]:
    """Write every batch as it comes; `shape` is that of all images, [N, H, W, 3], `columns` those
    of their grid.
    """
    files: list[Path] = []
    tokens: list[np.ndarray] = []
    first: list[Uint8Image] = []
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(npz_stream(outputs.npz, shape)) if outputs.npz else None
        done = 0
        for batch in batches:
            if outputs.folder:
                files += write_pngs(outputs.folder, batch, done)
            if stream:
                stream.write(batch.images.tobytes())
            first += list(batch.images[: max(0, GRID_MOST - done)])
            tokens.append(batch.tokens)
            done += len(batch.labels)
    if outputs.folder:
        files.append(outputs.folder / "grid.png")
        atomic_write(files[-1], png_bytes(image_grid(np.stack(first), columns)))
    if outputs.npz:
        files.append(outputs.npz)
    if outputs.tokens:
        buffer = io.BytesIO()
        kind = "latents" if np.issubdtype(tokens[0].dtype, np.floating) else "tokens"
        np.savez(buffer, allow_pickle=False, **{kind: np.concatenate(tokens)})
        atomic_write(outputs.tokens, buffer.getvalue())
        files.append(outputs.tokens)
    return files


def write_pngs(folder: Path, batch: Generated, number: int) -> list[Path]:
    """`NUMBER_LABEL.png` for each image of a batch whose first has `number`."""
    paths = [folder / f"{number + k:05d}_{label}.png" for k, label in enumerate(batch.labels)]
    for path, image in zip(paths, batch.images, strict=True):
        atomic_write(path, png_bytes(image))
    return paths


@contextlib.contextmanager
def npz_stream(path: Path, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A file to write the bytes of `arr_0`, uint8 of `shape`, to; it becomes `path` at the end.

    It is what the ADM evaluator reads: an .npz that need not fit in memory.
    """
    with (
        atomic_stream(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream
