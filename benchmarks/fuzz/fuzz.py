"""Mutations of every file that the tool reads back: no traceback, no hang, under 1 GB.

    python -m arvg_trt.benchmarks.fuzz                 2,000 of each kind, and whole commands
    python -m arvg_trt.benchmarks.fuzz --kind plan --mutations 100

Each kind has a process of its own, whose address space may grow by `MOST_MEMORY`. A mutation that
takes longer than `MOST_SECONDS`, or ends in anything but success or an `ArvgError`, is a fault; a
warning is one too, since users would see it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ArvgError
from ..common import source_commit
from .files import FileKind, file_kinds
from .mutations import mutate

MOST_MEMORY = 10**9
MOST_SECONDS = 10
MUTATIONS = 2000
HEADING = """# Mutations of every file that is read back

No traceback, no hang, under 1 GB. Made by `python -m arvg_trt.benchmarks.fuzz`. Each was read, or
refused in one line; memory is what the process of a kind grew by."""
RESULTS = Path(__file__).parent.parent / "results"


class Hang(BaseException):
    """Say that a reader did not end in time; no reader catches it."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(kind: FileKind, seed: int, folder: Path) -> str:
    """Return `read`, `refused`, or the traceback of a fault, for the mutation `seed` of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in kind.beside:
        (folder / name).write_bytes(data)
    (folder / kind.name).write_bytes(mutate(kind.data, kind.name, random.Random(seed)))
    try:
        with limited(MOST_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.read(folder)
    except ArvgError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except (Exception, Hang):
        return traceback.format_exc()
    finally:
        shutil.rmtree(folder)
    return "read"


def peak() -> int:
    """Return the bytes of memory that this process has had at most."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if "VmHWM" in line).split()[1])


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def child(name: str, mutations: int, out: Path) -> None:
    """Run the mutations of a kind under the limits, and write what came of them."""
    with tempfile.TemporaryDirectory() as scratch:
        kind = file_kinds(Path(scratch) / "valid")[name]
        clean = Path(scratch) / "clean"
        clean.mkdir()
        for file, data in (*kind.beside, (kind.name, kind.data)):
            (clean / file).write_bytes(data)
        kind.read(clean)  # it is no test of readers if the file itself is refused
        limit = address_space() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        start, before = time.monotonic(), peak()
        counts = {"read": 0, "refused": 0}
        faults: list[dict[str, Any]] = []
        progress = out.with_suffix(".seed")
        for seed in range(mutations):
            progress.write_text(str(seed))
            outcome = attempt(kind, seed, Path(scratch) / "case" / "ws")
            if outcome in counts:
                counts[outcome] += 1
            else:
                faults.append({"seed": seed, "fault": outcome})
        seconds = time.monotonic() - start
        row = {"kind": name, "mutations": mutations, **counts, "faults": faults}
        out.write_text(json.dumps({**row, "grew": peak() - before, "seconds": seconds}))


def run_kind(name: str, mutations: int, folder: Path) -> dict[str, Any]:
    out = folder / f"{name.replace(' ', '_')}.json"
    command = [sys.executable, "-m", "arvg_trt.benchmarks.fuzz", "--child", name]
    done = subprocess.run(
        [*command, "--mutations", str(mutations), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if out.is_file():
        found: dict[str, Any] = json.loads(out.read_text())
        return found
    seed = out.with_suffix(".seed")
    at = int(seed.read_text()) if seed.is_file() else -1
    fault = f"the process ended with {done.returncode}\n{done.stderr[-2000:]}"
    row = {
        "kind": name,
        "mutations": max(0, at),
        "read": 0,
        "refused": 0,
        "grew": 0,
        "seconds": 0.0,
    }
    return {**row, "faults": [{"seed": at, "fault": fault}]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| file | mutations | read | refused | faults | memory, MB | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['kind']} | {r['mutations']:,} | {r['read']:,} | {r['refused']:,} | "
        f"{len(r['faults'])} | {r['grew'] / 1e6:.0f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    parser.add_argument("--kind", action="append", help="Of these files alone.")
    parser.add_argument("--commands", type=int, default=20, help="Mutations a file for commands.")
    parser.add_argument("--page", help="Results of these --kind alone, as a page of this name.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.mutations, given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        known = list(file_kinds(Path(folder) / "valid"))
        rows = []
        for name in given.kind or known:
            rows.append(run_kind(name, given.mutations, Path(folder)))
            row = rows[-1]
            print(f"{name:<20} {row['read']:>6} {row['refused']:>6} {len(row['faults']):>4}")
            for fault in row["faults"][:3]:
                print(f"  seed {fault['seed']}: {fault['fault']}")
        if not given.kind and given.commands:
            from .commands import run_commands

            rows += run_commands(Path(folder) / "commands", given.commands)
    print(table(rows))
    page = given.page or ("" if given.kind else "fuzz")
    if page:
        text = f"{HEADING}\n\n{table(rows)}\n\nCommit {source_commit()}.\n"
        (RESULTS / f"{page}.md").write_text(text)
    sys.exit(any(row["faults"] for row in rows))
