"""Time several programs in turn, so that drift of the machine affects all of them alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np

from ...errors import AccuracyError, RecipeError
from ...runtime.sessions.processors import CPU_INFO, cpu_fields, cpu_flags
from ..intervals.bootstrap import interval_of
from ..intervals.sampled import ratio_of_medians

PartT = TypeVar("PartT", bound=str)
RACE_ROUNDS = 8  # from which a ratio of medians has an interval of the bootstrap
# Instructions that decide how fast INT8 and half precision run on a CPU.
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Hold wall-clock times of `n` calls in milliseconds; ``samples_ms`` in order of the rounds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    n: int
    samples_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        p50, p90, p99 = (float(v) for v in np.percentile(samples_ms, [50, 90, 99]))
        return cls(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            min_ms=min(samples_ms),
            n=len(samples_ms),
            samples_ms=tuple(samples_ms),
        )


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Say how many times faster than the reference: the ratio of both medians, and its interval.

    ``low`` and ``high`` are the ends of an interval of 95 %, by drawing rounds again; with too few
    rounds for that the least and the largest ratio of a round. ``verdict`` is "inconclusive" if
    they include 1, or there are too few rounds.
    """

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "inconclusive"]


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """Name the processor that latencies were measured on, and its flags that matter for INT8."""

    model: str
    flags: tuple[str, ...] = ()


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time each program once a round, in the order given: A B A B ...

    `warmup` (>= 0) untimed rounds, then `rounds` (>= 1) timed ones. `clock` returns seconds; it
    covers the call and nothing else, so a call must return only when its work is done.
    """
    require_rounds(warmup, rounds)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, call in runs.items():
            start = clock()
            call()
            elapsed = clock() - start
            if number >= warmup:
                samples[name].append(elapsed * 1000)
    return {name: Latency.of(times) for name, times in samples.items()}


def timed_parts(
    runs: Mapping[str, Callable[[], Mapping[PartT, float]]], *, warmup: int, rounds: int
) -> dict[PartT, dict[str, Latency]]:
    """Time programs in turn that report the seconds of each of their parts.

    Returns latencies by part, then by program. Every program must return the same parts.
    """
    require_rounds(warmup, rounds)
    samples: dict[PartT, dict[str, list[float]]] = {}
    for number in range(warmup + rounds):
        for name, call in runs.items():
            for part, seconds in call().items():
                if number >= warmup:
                    samples.setdefault(part, {}).setdefault(name, []).append(seconds * 1000)
    return {
        part: {name: Latency.of(times) for name, times in by_name.items()}
        for part, by_name in samples.items()
    }


def require_rounds(warmup: int, rounds: int) -> None:
    """Raise RecipeError for rounds in which nothing can be measured."""
    if warmup < 0 or rounds < 1:
        raise RecipeError(
            f"{warmup} warm-up and {rounds} timed rounds cannot be measured",
            do="use warmup >= 0 and rounds >= 1",
        )


def ratio(reference: Latency, candidate: Latency) -> Speed:
    """Return the speed of `candidate` over `reference`, both from one call of `interleaved`.

    Raises:
        AccuracyError: their rounds do not pair up.
    """
    if reference.n != candidate.n:
        raise AccuracyError(
            f"{reference.n} rounds of the reference and {candidate.n} of the candidate do not pair",
            do="time both in one interleaved run",
        )
    figure = ratio_of_medians(reference.samples_ms, candidate.samples_ms)
    found = interval_of(figure)
    middle = float(figure.statistic(figure.columns))
    with np.errstate(divide="ignore", invalid="ignore"):
        rounds = figure.columns[0] / figure.columns[1]
    low = float(rounds.min()) if found.low is None else found.low
    high = float(rounds.max()) if found.high is None else found.high
    verdict: Literal["faster", "slower", "inconclusive"]
    verdict = "inconclusive"
    if found.low is not None and (low > 1 or high < 1):
        verdict = "faster" if low > 1 else "slower"
    return Speed(ratio=middle, low=low, high=high, verdict=verdict)


RACE_ROUNDS = 8  # from which a ratio of medians has an interval of the bootstrap


def race(runs: Mapping[str, Callable[[], object]]) -> tuple[float, float, bool]:
    """Time two programs in turn; return their medians in ms, and whether the second is faster."""
    first, second = interleaved(runs, warmup=1, rounds=RACE_ROUNDS).values()
    return first.p50_ms, second.p50_ms, ratio(first, second).verdict == "faster"


def read_cpu(path: Path = CPU_INFO) -> Cpu:
    """Return the processor that Linux names; elsewhere what the platform says, without flags."""
    fields = cpu_fields(path)
    flags = cpu_flags(fields)
    return Cpu(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
    )
