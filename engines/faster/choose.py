"""Choose by time on this machine which sites of a quantization keep their rounded inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from ...graph.sites import SiteMap, load_sites
from ...numerics.scheme import Plan
from ...runtime.sessions.processors import processor_name
from ...workspace.facts import Exported
from ...workspace.stage import Reporter
from ..onnxruntime.build import output_ranges
from .decide import Timer, decide
from .facts import KeptIfFaster, SpeedRow, speed_row
from .pairs import Pairs
from .timing import SiteTimer
from .units import TwoGraphs, calls_of_one, find_units, require_rounded

TIMING, TIMING_WHOLE = "timing sites", "timing the whole model"
WHOLE = "whole model"
# Of the whole model: as many as its interval needs, and no more than these take time for.
LEAST_ROUNDS, MOST_ROUNDS, MOST_SECONDS = 8, 24, 60.0
Run = Callable[[], object]


def choose_by_time(
    model: Exported,
    source: Path,
    plan: Plan,
    calibration: Path,
    factor: float,
    reporter: Reporter,
) -> KeptIfFaster:
    """Return which sites of the Q/DQ graphs in `source` are faster than in FP32 by a factor.

    Raises:
        BuildError: no site has rounded inputs, or the shape of a tensor is not known.
    """
    site_map = load_sites(model.folder)
    rounded = require_rounded(source, site_map, plan)
    calls, shapes = calls_of_one(model, calibration / "samples")
    called = dict.fromkeys(call.graph for call in calls)
    both = {
        name: TwoGraphs.read(
            model.folder / f"{name}.onnx", source / f"{name}.onnx", rounded[name], shapes[name]
        )
        for name in called
        if name in rounded
    }
    found = {name: find_units(name, both[name], rounded[name], plan, calls) for name in both}
    units = {unit.name: unit for each in found.values() for unit in each}
    ranges = output_ranges(calibration / "statistics.safetensors")
    timer = reported(SiteTimer(units, both, ranges), len(units), reporter)
    judged = decide([[u.name for u in each] for each in found.values()], timer, factor)
    rows = [
        speed_row(
            units[each.names[0]].graph,
            tuple(site for name in each.names for site in units[name].sites),
            each.pairs,
            each.verdict,
            each.reason,
        )
        for each in judged
    ]
    return KeptIfFaster(
        factor=factor,
        source="measured",
        machine=processor_name(),
        unquantized="fp32",
        rows=tuple(rows),
        is_quantized=any(row.verdict == "kept" for row in rows),
    )


def reported(timer: SiteTimer, units: int, reporter: Reporter) -> Timer:
    """Return the timer, which says how many units it has opened."""

    def timed(names: Collection[str], rounds: int) -> Pairs:
        pairs = timer(list(names), rounds)
        reporter.progress(TIMING, len(timer.forms), units)
        return pairs

    return timed


def in_float(
    chosen: KeptIfFaster, source: Path, site_map: SiteMap, plan: Plan
) -> dict[str, frozenset[str]]:
    """Return by graph the sites of the Q/DQ graphs that are computed in float.

    A graph that was not timed, because it does not generate, is computed as those that do: it
    rounds what one of them rounds.
    """
    rounded = require_rounded(source, site_map, plan)
    timed = {row.graph for row in chosen.rows}
    kept = {site for graph in timed for site in chosen.kept(graph)}
    return {
        graph: chosen.removed(graph)
        if graph in timed
        else frozenset(site.name for site in sites if site.name not in kept)
        for graph, sites in rounded.items()
    }


def time_whole(plain: Run, engine: Run, reporter: Reporter) -> Pairs:
    """Return the times of an FP32 model and an engine, each run once before."""
    plain()
    engine()
    pairs: Pairs | None = None
    start = time.perf_counter()
    for k in range(MOST_ROUNDS):
        reporter.progress(TIMING_WHOLE, k, MOST_ROUNDS)
        turns = (plain, engine) if k % 2 else (engine, plain)
        taken = {run: timed(run) for run in turns}
        one = Pairs((taken[plain],), (taken[engine],))
        pairs = one if pairs is None else pairs + one
        if k + 1 >= LEAST_ROUNDS and time.perf_counter() - start > MOST_SECONDS:
            break
    reporter.progress(TIMING_WHOLE, MOST_ROUNDS, MOST_ROUNDS)
    assert pairs is not None
    return pairs


def timed(run: Run) -> float:
    """Return how long a run takes, in ms."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def with_whole(chosen: KeptIfFaster, pairs: Pairs) -> KeptIfFaster:
    """Return the choice with the times of the whole: unquantized, if FP32 is as fast.

    Where noise leaves that open, the median decides: that each site is faster is proved.
    """
    verdict = pairs.speed.verdict(1.0)
    faster = verdict == "kept" or (verdict == "inconclusive" and pairs.speed.ratio > 1)
    row = speed_row(WHOLE, (), pairs, verdict)
    rows = chosen.rows if faster else tuple(left_out(each, row) for each in chosen.rows)
    return msgspec.structs.replace(chosen, rows=rows, model=row, is_quantized=faster)


def left_out(row: SpeedRow, whole: SpeedRow) -> SpeedRow:
    """Return the row of sites that would be kept, but for the whole model, which gains nothing."""
    if row.verdict != "kept":
        return row
    reason = f"faster alone, but the whole model is {whole.ratio:.2f} times as fast with it"
    return msgspec.structs.replace(row, verdict="removed", reason=reason)
