"""Interleaving, percentiles and the verdict, on a clock that the programs themselves move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError, RecipeError
from arvg_trt.validate.metrics.latency import Latency, interleaved, ratio, read_cpu, timed_parts


def test_programs_take_turns_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    now = [0.0]

    def program(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds if len(calls) > 4 else 100.0

    found = interleaved(
        {"a": lambda: program("a", 0.010), "b": lambda: program("b", 0.002)},
        warmup=2,
        rounds=3,
        clock=lambda: now[0],
    )
    assert calls == ["a", "b"] * 5
    assert found["a"].samples_ms == pytest.approx([10.0] * 3)
    assert found["b"].p99_ms == pytest.approx(2.0) and found["b"].n == 3


def test_percentiles_are_of_the_samples() -> None:
    found = Latency.of([float(v) for v in range(1, 102)])
    assert (found.min_ms, found.p50_ms, found.p90_ms, found.p99_ms) == (1, 51, 91, 100)


def test_the_real_clock_sees_real_work() -> None:
    found = interleaved(
        {"little": lambda: sum(range(10)), "much": lambda: sum(range(30_000))}, warmup=1, rounds=5
    )
    assert 0 < found["little"].min_ms < found["much"].min_ms


def test_a_steady_factor_two_is_faster_even_when_the_machine_drifts() -> None:
    drift = np.linspace(1, 5, 20)
    speed = ratio(Latency.of((10 * drift).tolist()), Latency.of((5 * drift).tolist()))
    assert speed.ratio == pytest.approx(2) and speed.verdict == "faster"
    back = ratio(Latency.of((5 * drift).tolist()), Latency.of((10 * drift).tolist()))
    assert back.ratio == pytest.approx(0.5) and back.verdict == "slower"


def test_a_spread_that_includes_one_is_inconclusive() -> None:
    speed = ratio(Latency.of([10.0, 9.0] * 10), Latency.of([9.5] * 20))
    assert speed.low < 1 < speed.high and speed.verdict == "inconclusive"


def test_three_rounds_give_no_verdict() -> None:
    assert ratio(Latency.of([10.0] * 3), Latency.of([1.0] * 3)).verdict == "inconclusive"


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(AccuracyError, match="do not pair"):
        ratio(Latency.of([1.0] * 3), Latency.of([1.0] * 4))


@pytest.mark.parametrize(("warmup", "rounds"), [(-1, 5), (0, 0)])
def test_impossible_rounds_are_refused(warmup: int, rounds: int) -> None:
    with pytest.raises(RecipeError, match="cannot be measured"):
        interleaved({"a": list}, warmup=warmup, rounds=rounds)


def test_the_cpu_is_named_with_the_flags_that_matter(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu sse avx512_vnni amx_int8 avx2\n\n"
        "processor\t: 1\nmodel name\t: Fast One\n"
    )
    cpu = read_cpu(path)
    assert cpu.model == "Fast One" and cpu.flags == ("avx2", "avx512_vnni", "amx_int8")


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path / "missing")
    assert cpu.model and cpu.flags == ()


def test_parts_that_programs_time_themselves_pair_up_by_round() -> None:
    order: list[str] = []

    def program(name: str, seconds: list[float]) -> Callable[[], dict[str, float]]:
        left = iter(seconds)

        def call() -> dict[str, float]:
            order.append(name)
            now = next(left)
            return {"total": now, "tokens": now / 2}

        return call

    runs = {"fp32": program("fp32", [9.0, 4.0, 2.0]), "engine": program("engine", [9.0, 1.0, 0.5])}
    found = timed_parts(runs, warmup=1, rounds=2)
    assert order == ["fp32", "engine"] * 3
    assert found["total"]["fp32"].samples_ms == (4000.0, 2000.0)
    assert found["tokens"]["engine"].samples_ms == (500.0, 250.0)
    assert ratio(found["tokens"]["fp32"], found["tokens"]["engine"]).ratio == 4.0
    with pytest.raises(RecipeError, match="cannot be measured"):
        timed_parts(runs, warmup=0, rounds=0)
