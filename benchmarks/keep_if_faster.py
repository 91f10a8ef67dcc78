"""Compare engines of ONNX Runtime that round all planned inputs, and those that pay alone.

python -m arvg_trt.benchmarks.keep_if_faster WORKSPACE:NAME ... [--factor 1.02] [--rounds 24]

A workspace is one that was quantized as NAME. Its engine is built twice, and both run a sample
through all graphs, or make a picture, beside FP32 in one process and in turn, on one thread: with
more, threads of other work on a machine decide the times. Whole models are timed, so that what runs
between sites counts too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import msgspec

from ..graph.sites import load_sites
from ..pipeline.build import build_stage
from ..recipe.build import BuildOptions
from ..runtime.folders import opener
from ..runtime.generator import Generator
from ..runtime.sessions.open import fast_session
from ..samples.files import GraphChain, load_sample, sample_files
from ..validate.metrics.latency import Latency, interleaved, ratio
from ..workspace.facts import Exported, model_name
from ..workspace.stage import SilentReporter
from ..workspace.workspace import Workspace
from .common import RESULTS, environment, environment_line, markdown_table, write_results

THREADS = 1
FP32, ALL, KEPT = "FP32", "all planned", "kept if faster"


def built(root: Path, name: str, factor: float | None, place: Path) -> dict[str, Any]:
    """Build an engine and copy its folder; return what was kept."""
    options = BuildOptions(keep_if_faster=factor)
    with Workspace(root) as workspace:
        (result,) = build_stage(workspace, name, options, SilentReporter())
    shutil.copytree(result.folder, place)
    faster: dict[str, Any] = result.manifest.results.get("faster", {})
    return faster


def run_of(root: Path, folder: Path) -> Callable[[], object]:
    """Return what is timed of a folder: a picture, or a sample through all graphs."""
    with Workspace(root) as workspace:
        model = Exported.open(workspace)
    if model.kind == "generator":
        generator = Generator.open(folder, device="cpu", threads=THREADS, verify=False)
        return partial(generator.generate, [0])
    graphs = load_sites(model.folder).graphs
    sample = load_sample(sample_files(root / "calibrate" / "samples")[0])
    session = opener(folder, fast_session, "cpu")
    chain = GraphChain.open(folder, graphs, session=session, threads=THREADS)
    return partial(chain.run, sample)


def measured(root: Path, name: str, factor: float, rounds: int) -> dict[str, Any]:
    """Return the times of a workspace's FP32 graphs and both engines, and what was kept."""
    with Workspace(root) as workspace:
        title = model_name(Exported.open(workspace).manifest)
    with TemporaryDirectory() as scratch:
        places = {FP32: root / "export", ALL: Path(scratch) / "all", KEPT: Path(scratch) / "kept"}
        built(root, name, None, places[ALL])
        faster = built(root, name, factor, places[KEPT])
        sizes = {k: sum(f.stat().st_size for f in p.iterdir()) for k, p in places.items()}
        runs = {key: run_of(root, place) for key, place in places.items()}
        times = interleaved(runs, warmup=1, rounds=rounds)
    return {
        "model": title,
        "name": name,
        "bytes": sizes,
        "times": times,
        "speed": {key: ratio(times[FP32], times[key]) for key in (ALL, KEPT)},
        "against_all": ratio(times[ALL], times[KEPT]),
        "faster": faster,
    }


def whole_row(found: Mapping[str, Any], key: str) -> list[str]:
    time: Latency = found["times"][key]
    row = [found["model"], key, f"{found['bytes'][key] / 1e6:.1f}", f"{time.p50_ms:.1f}"]
    if key == FP32:
        return [*row, "1", ""]
    speed = found["speed"][key]
    return [*row, f"{speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f})", speed.verdict]


def site_rows(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            f"{found['model']}, {row['graph']}",
            row["sites"][0] + (f" and {len(row['sites']) - 1} more" * (len(row["sites"]) > 1)),
            f"{row['unquantized_ms']:.3f}",
            f"{row['quantized_ms']:.3f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            row["verdict"],
        ]
        for row in found["faster"]["rows"]
    ]


def kept_text(faster: Mapping[str, Any]) -> str:
    """Return how many of the timed sites an engine rounds."""
    count = sum(len(row["sites"]) for row in faster["rows"])
    kept = sum(len(row["sites"]) for row in faster["rows"] if row["verdict"] == "kept")
    return f"{kept} of {count} sites are kept"


@click.command(help=__doc__)
@click.argument("workspaces", nargs=-1, required=True)
@click.option("--factor", default=1.02, show_default=True)
@click.option("--rounds", default=24, show_default=True)
def main(workspaces: tuple[str, ...], factor: float, rounds: int) -> None:
    results, load = [], os.getloadavg()[0]
    for each in workspaces:
        root, _, name = each.rpartition(":")
        results.append(measured(Path(root), name, factor, rounds))
    machine = environment(THREADS)
    whole = [whole_row(each, key) for each in results for key in (FP32, ALL, KEPT)]
    against = [
        f"- {each['model']}: the engine that keeps what is faster by {factor:g} takes "
        f"{1 / each['against_all'].ratio:.2f} of the time of the one that rounds all "
        f"({each['against_all'].verdict}); {kept_text(each['faster'])}."
        for each in results
    ]
    text = "\n".join(
        [
            "# Rounded inputs where they pay",
            "",
            f"{environment_line(machine)}. Whole models in turn, {rounds} rounds: medians, and "
            f"ratios to FP32 with intervals of 95 %. Load average before: {load:.1f}.",
            "",
            markdown_table(
                ["model", "engine", "MB", "ms", "times as fast as FP32", "verdict"], whole
            ),
            "",
            *against,
            "",
            "Sites alone on all threads, those computed alike in a row; times of one sample "
            "or picture.",
            "",
            markdown_table(
                ["graph", "sites", "FP32, ms", "rounded, ms", "times as fast", "verdict"],
                [row for each in results for row in site_rows(each)],
            ),
        ]
    )
    values = msgspec.to_builtins({"environment": machine, "load": load, "results": results})
    write_results("keep_if_faster", RESULTS, f"{text}\n", values)


if __name__ == "__main__":
    main()
