"""Measure what shipping takes: building and signing a bundle, opening one, importing the runtime.

python -m arvg_trt.benchmarks.shipping

var-mini, quantized W8A8, is built for the CPU and three groups of RTX GPUs, and packed with a
signature. Then its CPU group is opened, by whole commands' worth of work in one process: the first
time it is unpacked, later it is compared with its digests. Beside both, the same bytes are read,
and read and hashed, by Python alone. Files are in the page cache each time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from ..api import Workspace
from ..pipeline.ship import make_keys
from ..runtime.bundle.open import open_bundle
from ..runtime.bundle.reader import Bundle
from ..workspace.files import CACHE_VARIABLE, KNOWN
from .common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    source_commit,
    write_results,
)

MODEL, NAME = "var-mini", "w8a8"
TARGETS = (("sm75",), ("sm86", "sm89"), ("sm120", "sm121"))
ROUNDS = 9
OUR_IMPORT = "import arvg_trt.runtime.generator, arvg_trt.runtime.tokenizer"
THEIR_IMPORT = "import numpy, onnxruntime, msgspec"


@dataclass(frozen=True, slots=True)
class Shipping:
    """Hold seconds, and the bytes of the bundle; opening is a median of some rounds.

    `build` and `pack` are one run each; `import_beyond` is our import less that of numpy, ONNX
    Runtime and msgspec.
    """

    groups: tuple[str, ...]
    bundle_bytes: int
    build: float
    pack: float
    read_group: float
    hash_group: float
    read_file: float
    hash_file: float
    first_open: float
    later_open: float
    verify_and_open: float
    import_beyond: float


def prepare(folder: Path) -> Workspace:
    """Export, calibrate and quantize the model; what is measured begins after it."""
    workspace = Workspace(folder / "ws")
    workspace.export(MODEL)
    workspace.calibrate(samples=20, batch_size=8)
    workspace.quantize(NAME, weight_bits=8, activation_bits=8)
    return workspace


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(paths: list[Path], hashed: bool) -> None:
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                if hashed:
                    digest.update(block)


def import_seconds(statement: str) -> float:
    """Return the median time of a process that imports, of some rounds."""
    command = [sys.executable, "-c", statement]
    return median(seconds_of(lambda: subprocess.run(command, check=True)) for _ in range(ROUNDS))


def measure(folder: Path) -> Shipping:
    """Build, pack and open; the cache is a folder of its own."""
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    workspace, file = prepare(folder), folder / "var.tar"
    key, public = make_keys(folder / "ci")

    def build() -> None:
        workspace.build(NAME)
        for targets in TARGETS:
            workspace.build(NAME, backend="tensorrt_rtx", targets=list(targets))

    built = seconds_of(build)
    pack = seconds_of(lambda: workspace.bundle(file, NAME, key=key))
    first = seconds_of(lambda: open_bundle(file, device="cpu", require_keys=[public]))
    opened = open_bundle(file, device="cpu", require_keys=[public])
    group = [path for path in opened.folder.parents[2].rglob("*") if path.is_file()]
    timed: dict[str, Callable[[], object]] = {
        "read_group": lambda: read(group, hashed=False),
        "hash_group": lambda: read(group, hashed=True),
        "read_file": lambda: read([file], hashed=False),
        "hash_file": lambda: read([file], hashed=True),
        "later_open": lambda: open_in_new_process(file, public),
        "verify_and_open": lambda: verify_and_open(file, public),
    }
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, work in timed.items():
            found[name].append(seconds_of(work))
    return Shipping(
        groups=tuple(step.group for step in opened.choice.steps),
        bundle_bytes=file.stat().st_size,
        build=built,
        pack=pack,
        first_open=first,
        import_beyond=import_seconds(OUR_IMPORT) - import_seconds(THEIR_IMPORT),
        **{name: median(values) for name, values in found.items()},
    )


def open_in_new_process(file: Path, public: Path) -> None:
    """Open as a new process would: digests that this one knows are forgotten."""
    KNOWN.clear()
    open_bundle(file, device="cpu", require_keys=[public])


def verify_and_open(file: Path, public: Path) -> None:
    with Bundle(file) as bundle:
        bundle.verify()
    open_in_new_process(file, public)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(out: Path) -> None:
    """Measure, print a table, and write it with its figures to OUT."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    machine = environment(threads=0)
    rows = [[name.replace("_", " "), f"{value:.3f}"] for name, value in seconds(found).items()]
    text = "\n".join(
        [
            "# Shipping",
            "",
            f"`python -m arvg_trt.benchmarks.shipping`, {environment_line(machine)}.",
            "",
            f"{MODEL} {NAME}, {', '.join(found.groups)}: {found.bundle_bytes / 1e6:.1f} MB.",
            "",
            markdown_table(["what", "seconds"], rows),
            "",
            f"Of the time that reading and hashing the file takes: first open "
            f"{found.first_open / found.hash_file:.2f}, later open "
            f"{found.later_open / found.hash_file:.2f}, verifying every byte and opening "
            f"{found.verify_and_open / found.hash_file:.2f}.",
            "",
        ]
    )
    write_results(
        "shipping",
        out,
        text,
        asdict(found) | {"environment": machine} | {"commit": source_commit()},
    )
    click.echo(text)


def seconds(found: Shipping) -> dict[str, float]:
    return {k: v for k, v in asdict(found).items() if isinstance(v, float)}


if __name__ == "__main__":
    main()
