"""Measure time and memory of exporting a generator of a published size, as a user runs it.

python -m arvg_trt.benchmarks.export_scale --model var-d30 --workdir /scratch
python -m arvg_trt.benchmarks.export_scale --model par-3b-4x --dtype bfloat16 --workdir /scratch

The checkpoint has the official names, shapes and form, and random weights. The export runs in a
fresh process. Every second the memory of it and of the processes that it starts is read from
`/proc`: what is anonymous, and what are pages of mapped files, which the system drops as soon as
something else needs the room. The workspace is removed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from ..families.variants import find_model
from ..workspace.files import decode_json
from ..workspace.manifest import MANIFEST, Manifest
from .common import RESULTS, environment, environment_line, markdown_table, write_results
from .random_checkpoint import DTYPES, FORMS, write_checkpoint

INTERVAL = 1.0  # seconds between two samples; each costs about 50 ms at 8 GB
MOST = 1.6  # relative to the FP32 weights
IMAGES = "skimage:astronaut,coffee"
# One process writes the graphs, the next compares them; before and after, files are digested.
PHASES = ("digest of the checkpoint", "graphs", "comparison", "digests of the graphs")


@dataclass(frozen=True, slots=True)
class Memory:
    """Hold bytes: anonymous, all resident, and the most that a single process had resident.

    Pages that processes share are counted once in the sum over them (`Pss`).
    """

    anonymous: int = 0
    resident: int = 0
    peak_of_one: int = 0

    def beside(self, other: Memory) -> Memory:
        """Return the memory of two processes at the same time."""
        return Memory(
            self.anonymous + other.anonymous,
            self.resident + other.resident,
            max(self.peak_of_one, other.peak_of_one),
        )

    def most(self, other: Memory) -> Memory:
        """Return the larger memory of two moments."""
        return Memory(
            max(self.anonymous, other.anonymous),
            max(self.resident, other.resident),
            max(self.peak_of_one, other.peak_of_one),
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """Hold the costs of a part of the export, which is told by what it has written so far."""

    seconds: float = 0.0
    memory: Memory = Memory()

    def after(self, seconds: float, memory: Memory) -> Phase:
        return Phase(self.seconds + seconds, self.memory.most(memory))


def process_tree(pid: int) -> Iterator[int]:
    """Yield a process and all that it started; those that end meanwhile are left out."""
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = listed.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield from process_tree(int(child))


def read_memory(pid: int) -> Memory:
    """Return the memory of one process; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Memory()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    peak = status.partition("VmHWM:")[2].split()
    if not kib or not peak:
        return Memory()
    return Memory(kib["Anonymous"] * 1024, kib["Pss"] * 1024, int(peak[0]) * 1024)


def measure(arguments: list[str]) -> dict[str, Phase]:
    """Run the command line; returns its phases.

    Raises:
        click.ClickException: it failed; its message is on stderr.
    """
    process = subprocess.Popen([sys.executable, "-m", "arvg_trt", *arguments])
    phases: dict[str, Phase] = {}
    started: set[int] = set()
    last = time.monotonic()
    while process.poll() is None:
        time.sleep(INTERVAL)
        tree = list(process_tree(process.pid))
        started.update(tree[1:])
        memory = Memory()
        for pid in tree:
            memory = memory.beside(read_memory(pid))
        phase = PHASES[len(started) + (len(started) == 2 and len(tree) == 1)]
        now = time.monotonic()
        phases[phase] = phases.get(phase, Phase()).after(now - last, memory)
        last = now
    if process.returncode:
        raise click.ClickException(f"the export ended with {process.returncode}")
    return phases


def phase_table(phases: dict[str, Phase], weights: float) -> str:
    def row(name: str, seconds: float, memory: Memory) -> list[str]:
        sizes = (memory.anonymous, memory.resident, memory.peak_of_one)
        shown = [f"{size / 1e9:.2f} ({size / weights:.2f}x)" for size in sizes]
        return [name, f"{seconds:.0f}", *shown]

    total = Memory()
    for phase in phases.values():
        total = total.most(phase.memory)
    seconds = sum(phase.seconds for phase in phases.values())
    rows = [row(name, phase.seconds, phase.memory) for name, phase in phases.items()]
    header = ("phase", "s", "anonymous, GB", "resident, GB", "resident of one process, GB")
    return markdown_table(header, [*rows, row("all", seconds, total)])


@click.command()
@click.option("--model", default="var-d16", show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path), required=True, help="Needs room.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A folder, not a random one.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(model: str, workdir: Path, checkpoint: Path | None, dtype: str, out: Path) -> None:
    """Measure and write `export_scale_MODEL.md` and `.json`."""
    entry = find_model(model)
    if entry.family not in FORMS or entry.hub is None:
        raise click.BadParameter(f"{model} is no published generator", param_hint="--model")
    scratch = Path(tempfile.mkdtemp(dir=workdir))
    try:
        folder = checkpoint or scratch / "checkpoint"
        if checkpoint is None:
            click.echo("writing a checkpoint", err=True)
            write_checkpoint(folder, entry, seed=0, dtype=dtype)
        workspace = scratch / "ws"
        click.echo("exporting", err=True)
        arguments = ["export", model, str(workspace), "--checkpoint", str(folder)]
        phases = measure([*arguments, "--images", IMAGES])
        manifest = decode_json(workspace / "export" / MANIFEST, Manifest, do="")
    finally:
        shutil.rmtree(scratch)
    results: dict[str, Any] = manifest.results
    weights = 4 * results["parameters"]
    worst = max(d["max"] for d in results["parity"]["graphs"])
    found = environment(torch.get_num_threads())
    text = "\n\n".join(
        (
            f"# Exporting {model}: {results['parameters']:,} parameters, "
            + (f"random {dtype} weights" if checkpoint is None else "weights of a user"),
            environment_line(found),
            phase_table(phases, weights),
            f"In brackets: relative to the FP32 weights, {weights / 1e9:.2f} GB; at most {MOST}x "
            "is wanted. Anonymous memory cannot be dropped; resident memory has the pages of the "
            "mapped checkpoint and weights too; both are sums over all processes of the export. "
            "The last column is `VmHWM`, what `/usr/bin/time` shows.",
            f"Largest difference from PyTorch over all graphs and steps: {worst:.1e} of the RMS.",
        )
    )
    values = {
        "environment": found,
        "parameters": results["parameters"],
        "phases": {name: asdict(phase) for name, phase in phases.items()},
        "worst_difference": worst,
    }
    write_results(f"export_scale_{model}", out, text + "\n", values)
    click.echo(text)


if __name__ == "__main__":
    main()
