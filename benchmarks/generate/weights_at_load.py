"""Time generators whose weights alone have 8 or 4 bits, expanded at load and in each run.

python -m arvg_trt.benchmarks.generate.weights_at_load WORKSPACE:NAME,NAME ... [--rounds 8]

A workspace is one whose quantizations of these names have an engine of ONNX Runtime. Each makes a
picture in turn, on one thread: beside the FP32 graphs, and beside itself with its weights left
packed, as ONNX Runtime opens it by default.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from ...runtime.generator import Generator
from ...runtime.sessions.open import disabled_for, open_session
from ...runtime.sessions.session import Session
from ...validate.metrics.latency import Latency, interleaved
from ...workspace.facts import Exported, model_name
from ...workspace.workspace import Workspace
from ..common import RESULTS, environment, environment_line, markdown_table, write_results

FP32 = "FP32"


def packed_session(path: Path, threads: int) -> Session:
    """Open a graph as engines are opened, but for what expands its weights."""
    return open_session(path, optimized=True, threads=threads, disabled=disabled_for(path))


def measured(root: Path, names: tuple[str, ...], rounds: int) -> tuple[str, dict[str, Latency]]:
    """Return the model's title, and times by what ran: `NAME` and `NAME, packed`."""
    with Workspace(root) as workspace:
        title = model_name(Exported.open(workspace).manifest)
    opened = {FP32: Generator.open(root / "export", device="cpu", threads=1)}
    for name in names:
        folder = root / "engines" / name / "onnxruntime"
        opened[name] = Generator.open(folder, device="cpu", threads=1)
        opened[f"{name}, packed"] = Generator.open(folder, session=packed_session, threads=1)
    runs = {key: partial(each.generate, [0]) for key, each in opened.items()}
    return title, interleaved(runs, warmup=1, rounds=rounds)


@click.command(help=__doc__)
@click.argument("workspaces", nargs=-1, required=True)
@click.option("--rounds", default=8, show_default=True)
def main(workspaces: tuple[str, ...], rounds: int) -> None:
    results: dict[str, Any] = {}
    rows = []
    for each in workspaces:
        root, _, names = each.rpartition(":")
        title, times = measured(Path(root), tuple(names.split(",")), rounds)
        results[title] = times
        fp32 = times[FP32]
        for name in names.split(","):
            rows.append(
                [title, name, f"{fp32.min_ms:.1f}"]
                + [
                    f"{times[key].min_ms / fp32.min_ms:.2f} ({times[key].p50_ms / fp32.p50_ms:.2f})"
                    for key in (f"{name}, packed", name)
                ]
            )
    machine = environment(1)
    text = "\n".join(
        [
            "# Weights of few bits beside float inputs",
            "",
            f"{environment_line(machine)}. A picture each in turn, {rounds} rounds, other work on "
            "the machine: least times in those of FP32, medians in brackets.",
            "",
            markdown_table(
                ["model", "name", "FP32, ms", "expanded in each run", "expanded at load"], rows
            ),
        ]
    )
    values = msgspec.to_builtins({"environment": machine, "results": results})
    write_results("weights_at_load", RESULTS, f"{text}\n", values)


if __name__ == "__main__":
    main()
