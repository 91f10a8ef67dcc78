"""Measure packed bundles: what they take to download, to expand, on disk and in memory.

python -m arvg_trt.benchmarks.packing WS:NAME WS:NAME ...

Each quantization was validated with its engine of ONNX Runtime, so that its report has the sizes
and the memory. Its bundle, with that engine alone, is written as it is and packed, and both are
unpacked by the command in fresh processes, whose peak is VmHWM with Python and its libraries.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from ..api import Workspace
from ..pipeline.ship import unpack_file
from ..runtime.packed.expand import expand_folder, untold
from ..runtime.packed.layout import read_index
from .common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    run_measured,
    source_commit,
    write_results,
)
from .shipping import seconds_of

ROUNDS = 5
MB = 1e6


@dataclass(frozen=True, slots=True)
class Packing:
    """Hold bytes, seconds, and megabytes (10^6 bytes) of memory at its peak.

    `parts` are the bytes of the packed engine, `expand` the seconds of its expansion in a process
    that is running, the median of some; pairs are of the bundle as it is and of the packed one.
    """

    model: str
    name: str
    fp32_bytes: int
    expanded_bytes: int
    parts: dict[str, int]
    memory_bytes: dict[str, int]
    expand: float
    bundle_bytes: tuple[int, int]
    bundle: tuple[float, float]
    unpack: tuple[float, float]
    unpack_peak_mb: tuple[float, float]

    @property
    def packed_bytes(self) -> int:
        return sum(self.parts.values())


def measure(path: Path, name: str, scratch: Path) -> Packing:
    """Write and unpack both bundles of a quantization; return them beside its report's sizes."""
    workspace = Workspace(path)
    report = workspace.report(name)
    found = report.sizes
    if found.download is None or found.fp32_running_bytes is None:
        raise click.UsageError(f"{path}: validate {name} again, its report has no download")
    files = (scratch / "plain.tar", scratch / "packed.tar")
    made = [
        seconds_of(lambda p=packed, f=file: workspace.bundle(f, name, kit=False, packed=p))  # type: ignore[misc]
        for packed, file in enumerate(files)
    ]
    unpacked = [
        run_measured(["arvg_trt", "unpack", str(file), "-o", str(file.with_suffix(""))], scratch)
        for file in files
    ]
    unpack_file(files[1], scratch / "left", "cpu", (), packed=True)
    return Packing(
        model=report.model,
        name=name,
        fp32_bytes=found.fp32_running_bytes,
        expanded_bytes=found.download.expanded_bytes,
        parts=found.download.parts,
        memory_bytes=found.memory_bytes,
        expand=expansion(scratch / "left" / "engines" / name / "onnxruntime", scratch),
        bundle_bytes=(files[0].stat().st_size, files[1].stat().st_size),
        bundle=(made[0], made[1]),
        unpack=(unpacked[0].seconds, unpacked[1].seconds),
        unpack_peak_mb=(unpacked[0].peak_mb, unpacked[1].peak_mb),
    )


def expansion(folder: Path, scratch: Path) -> float:
    """Return the median seconds in which a packed folder is expanded and compared."""
    index, rounds = read_index(folder), []
    for k in range(ROUNDS):
        target = scratch / f"expanded{k}"
        target.mkdir()
        rounds.append(
            seconds_of(lambda to=target: expand_folder(folder, index, to, untold))  # type: ignore[misc]
        )
    return median(rounds)


HEADER = (
    *("model", "FP32, MB", "packed, MB", "few bits", "high precision", "graphs, index"),
    *("on disk, MB", "packed, smaller", "on disk, smaller", "expand, ms"),
    *("peak of `unpack`, plain and packed, MB", "in memory, FP32 and engine, MB"),
)


def row(found: Packing) -> list[str]:
    parts = found.parts
    peaks = [f"{peak:.0f}" for peak in found.unpack_peak_mb]
    memory = [f"{count / MB:.0f}" for count in found.memory_bytes.values()] or ["not measured"]
    return [
        f"{found.model} {found.name}",
        f"{found.fp32_bytes / MB:.2f}",
        f"**{found.packed_bytes / MB:.2f}**",
        f"{parts['few_bits'] / MB:.2f}",
        f"{parts['high_precision'] / MB:.2f}",
        f"{(parts['graphs'] + parts['index']) / MB:.2f}",
        f"{found.expanded_bytes / MB:.2f}",
        f"{found.fp32_bytes / found.packed_bytes:.2f}\u00d7",
        f"{found.fp32_bytes / found.expanded_bytes:.2f}\u00d7",
        f"{1e3 * found.expand:.0f}",
        ", ".join(peaks),
        ", ".join(memory),
    ]


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="WS:NAME ...")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(places: tuple[str, ...], out: Path) -> None:
    """Measure quantizations with an engine, print a table, and write it with its figures to OUT."""
    found = []
    for place in places:
        path, _, name = place.rpartition(":")
        with tempfile.TemporaryDirectory() as scratch:
            found.append(measure(Path(path), name, Path(scratch)))
    machine = environment(threads=0)
    text = "\n".join(
        [
            "# Packed bundles",
            "",
            f"`python -m arvg_trt.benchmarks.packing`, {environment_line(machine)}.",
            "",
            markdown_table(HEADER, [row(each) for each in found]),
            "",
            "FP32: the graphs that make images, with their weights. Packed: the engine's folder as "
            "`bundle --packed` ships it, with all its graphs; what stays in high precision is "
            "stored without loss, in half where float16 holds every value, as it does those of "
            "small models with float16 checkpoints. On disk: that folder once it is expanded. "
            "Peaks are of the whole command, Python and libraries too; memory is the most that a "
            "fresh process takes beyond its libraries to open the graphs and make one image.",
            "",
        ]
    )
    figures = {"environment": machine, "commit": source_commit()}
    write_results("packing", out, text, figures | {"found": [asdict(each) for each in found]})
    click.echo(text)


if __name__ == "__main__":
    main()
