"""Measure packed bundles: what they take to download, to expand, on disk and in memory.

python -m arvg_trt.benchmarks.packing WS:NAME WS:NAME ...

Each quantization has its engine of ONNX Runtime. Its bundle, with that engine alone, is written as
it is and packed, and both are unpacked by the command in fresh processes, whose peak is VmHWM with
Python and its libraries. Memory in use is that of the report: the most that a fresh process takes
beyond its libraries to open the graphs on the CPU and make one image.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from ..engines.packed.write import known_weights, pack_folder
from ..pipeline.bundle import bundle_workspace
from ..runtime.bundle.reader import Bundle
from ..runtime.packed.expand import expand_folder, untold
from ..validate.measure.memory import MemoryRequest, measure_memory
from ..validate.measure.sizes import measure_download, running_bytes
from ..workspace.facts import Exported, model_name
from ..workspace.workspace import Workspace
from .common import (
    RESULTS,
    SIZE,
    QuietReporter,
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

    `packed` are the bytes of a packed folder by parts, `expand` the seconds of its expansion in a
    process that is running, the median of some; `unpack` and the like are of whole commands.
    """

    model: str
    name: str
    fp32_bytes: int
    expanded_bytes: int
    packed: dict[str, int]
    bundle_bytes: int
    packed_bundle_bytes: int
    pack: float
    expand: float
    unpack: float
    unpack_packed: float
    unpack_peak_mb: float
    unpack_packed_peak_mb: float
    memory_bytes: dict[str, int | None]

    @property
    def packed_bytes(self) -> int:
        return sum(self.packed.values())


def measure(path: Path, name: str, scratch: Path) -> Packing:
    """Write and unpack the bundles of a quantization, and open its graphs."""
    with Workspace(path) as workspace:
        model = Exported.open(workspace)
        engine, quantized = (
            workspace.folder("engines", name, "onnxruntime"),
            workspace.folder("quantize", name),
        )
        fp32, _ = running_bytes(model.folder, model.manifest, {"engine": engine})
        download = measure_download("engine", engine, quantized, untold)
        output, rounds = scratch / "form", []
        output.mkdir()
        pack = seconds_of(lambda: pack_folder(engine, output, known_weights(quantized)))
        index, _ = pack_folder(engine, output, known_weights(quantized))
        for k in range(ROUNDS):
            target = scratch / f"expanded{k}"
            target.mkdir()
            rounds.append(
                seconds_of(lambda to=target: expand_folder(output, index, to, untold))  # type: ignore[misc]
            )
        files = {}
        for packed in (False, True):
            files[packed] = scratch / f"{packed}.tar"
            bundle_workspace(
                workspace, name, files[packed], QuietReporter(), kit=False, packed=packed
            )
        sizes = {packed: group_bytes(file) for packed, file in files.items()}
        unpacked = {
            packed: run_measured(
                ["arvg_trt", "unpack", str(file), "-o", str(scratch / f"u{packed}")], scratch
            )
            for packed, file in files.items()
        }
        memory = {
            called: measure_memory(
                MemoryRequest(folder=str(folder), kind=model.kind, side=SIZE, threads=0),
                QuietReporter(),
            )
            for called, folder in (("fp32", model.folder), ("qdq", quantized), ("engine", engine))
        }
        return Packing(
            model=model_name(model.manifest),
            name=name,
            fp32_bytes=fp32,
            expanded_bytes=download.expanded_bytes,
            packed=download.parts,
            bundle_bytes=sizes[False],
            packed_bundle_bytes=sizes[True],
            pack=pack,
            expand=median(rounds),
            unpack=unpacked[False].seconds,
            unpack_packed=unpacked[True].seconds,
            unpack_peak_mb=unpacked[False].peak_mb,
            unpack_packed_peak_mb=unpacked[True].peak_mb,
            memory_bytes=memory,
        )


def group_bytes(file: Path) -> int:
    """Return the bytes of the CPU's group of a bundle, without documents."""
    with Bundle(file) as bundle:
        group = bundle.facts.group("onnxruntime")
        assert group is not None
        return group.bytes


def row(found: Packing) -> list[str]:
    memory = [found.memory_bytes[name] for name in ("fp32", "engine")]
    return [
        f"{found.model} {found.name}",
        f"{found.fp32_bytes / MB:.2f}",
        f"{found.expanded_bytes / MB:.2f}",
        f"**{found.packed_bytes / MB:.2f}**",
        *(f"{found.packed[part] / MB:.2f}" for part in ("few_bits", "high_precision", "graphs")),
        f"{found.fp32_bytes / found.packed_bytes:.2f}",
        f"{found.fp32_bytes / found.expanded_bytes:.2f}",
        f"{1e3 * found.expand:.0f}",
        f"{found.unpack_packed_peak_mb - found.unpack_peak_mb:+.0f}",
        *("-" if count is None else f"{count / MB:.0f}" for count in memory),
    ]


HEADER = (
    *("model", "FP32, MB", "engine on disk, MB", "packed, MB", "few bits", "high precision"),
    *("graphs", "packed, times smaller", "on disk, times smaller", "expand, ms"),
    *("peak of `unpack`, MB more", "FP32 in memory, MB", "engine in memory, MB"),
)


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
        click.echo(" | ".join(row(found[-1])), err=True)
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
            "`bundle --packed` ships it, all its graphs; high precision is stored without loss, in "
            "half where float16 holds every value. The peak is that of the command over the same "
            "bundle without packed weights.",
            "",
        ]
    )
    figures = {"environment": machine, "commit": source_commit()}
    write_results("packing", out, text, figures | {"found": [asdict(each) for each in found]})
    click.echo(text)


if __name__ == "__main__":
    main()
