"""Gates read high percentiles, rates, starts and memory of an executed engine."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from arvg_trt.errors import RecipeError
from arvg_trt.validate.intervals.speeds import OF_PART, SPEEDS
from arvg_trt.validate.machine.start import Start, Starts
from arvg_trt.validate.machine.watch import MachineLoad
from arvg_trt.validate.metric_names import metric_names, parse_gates_of
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.report.compose import judged
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.schema import METRIC_NAMES, LatencyRow, Report, metrics

from ..conftest import MakeReport


def row(engine: list[float], *, batch: int = 4, tokens: int | None = None) -> LatencyRow:
    fp32 = Latency.of([2 * each for each in engine])
    own = Latency.of(engine)
    return LatencyRow(
        fp32=fp32,
        engine=own,
        speed=ratio(fp32, own),
        shape=(batch, 3, 8, 8),
        batch=batch,
        threads=1,
        tokens=tokens,
    )


@pytest.fixture
def measured(make_report: MakeReport) -> Report:
    """A report with 40 rounds of 1 to 40 ms, and three starts."""
    report = make_report(engine_ms=4.0).report
    each = [
        Start(load_ms=20.0, first_ms=200.0, memory_bytes=5_000_000),
        Start(load_ms=10.0, first_ms=100.0, memory_bytes=7_000_000),
        Start(load_ms=90.0, first_ms=150.0, memory_bytes=6_000_000),
    ]
    times = [float(k) for k in range(1, 41)]
    return msgspec.structs.replace(
        report,
        latency={"total": row(times), "tokens": row(times, tokens=64), "decoder": row(times)},
        starts={report.headline or "": Starts.of(each)},
    )


def test_each_speed_is_what_numpy_says_of_its_rounds(measured: Report) -> None:
    times = np.arange(1, 41)
    found = metrics(measured)
    for prefix in ("", "tokens.", "decoder."):
        assert found[f"{prefix}p90_ms"] == np.percentile(times, 90)
        assert found[f"{prefix}p99_ms"] == np.percentile(times, 99)
        assert found[f"{prefix}latency_ms"] == 20.5 and found[f"{prefix}speedup"] == 2.0
    assert found["images_per_s"] == pytest.approx(4 * 1000 / 20.5)
    assert found["tokens_per_s"] == pytest.approx(64 * 1000 / 20.5)
    assert found["samples_per_s"] is None  # of graphs of one's own
    assert (found["load_ms"], found["first_ms"], found["memory_mb"]) == (20.0, 150.0, 7.0)


@pytest.mark.parametrize(
    ("gate", "verdict", "reason"),
    [
        ("p90_ms<=37", "passed", None),
        ("p90_ms<=30", "failed", "p90_ms is 36.1"),
        ("decoder.p90_ms<=50@95%", "passed", None),
        ("p90_ms<=36.5@95%", "inconclusive", "p90_ms is 36.1, 32 to 40 over 40 rounds: about"),
        ("p99_ms<=50@95%", "inconclusive", "40 rounds do not bound it: 368 would"),
        ("images_per_s>=195", "passed", None),
        ("tokens_per_s>=5000", "failed", "tokens_per_s is 3121.95"),
        ("load_ms<=25", "passed", None),
        ("load_ms<=25@95%", "inconclusive", "3 starts: an interval needs 8 or more"),
        ("memory_mb<=6.5", "failed", "memory_mb is 7"),
    ],
)
def test_a_gate_reads_it(measured: Report, gate: str, verdict: str, reason: str | None) -> None:
    (found,) = judged(measured, parse_gates([gate], METRIC_NAMES)).gates
    assert found.verdict == verdict
    assert (reason is None) == (found.reason is None)
    assert reason is None or reason in str(found.reason)


def test_what_was_not_timed_fails_its_gate(make_report: MakeReport) -> None:
    report = msgspec.structs.replace(make_report().report, latency={}, starts={})
    found = judged(report, parse_gates([f"{name}>=0" for name in SPEEDS], METRIC_NAMES)).gates
    assert {each.verdict for each in found} == {"failed"}
    assert {each.reason for each in found} == {f"{name} was not measured" for name in SPEEDS}


def test_memory_has_no_interval_that_a_gate_could_ask_for() -> None:
    with pytest.raises(RecipeError, match="memory_mb has no interval, for it is the highest"):
        parse_gates_of("tokenizer", ["memory_mb<=100@95%"])


def test_a_kind_of_models_has_its_own_rates_and_parts() -> None:
    named = {kind: set(metric_names(kind)) for kind in ("tokenizer", "custom", "generator")}
    assert {k for k, names in named.items() if "samples_per_s" in names} == {"custom"}
    assert {k for k, names in named.items() if "tokens_per_s" in names} == {"generator"}
    assert {k for k, names in named.items() if "images_per_s" in names} == {
        "tokenizer",
        "generator",
    }
    assert {f"encoder.{name}" for name in OF_PART} <= named["tokenizer"]
    assert not any(name.startswith("encoder.") for name in named["generator"] | named["custom"])


@pytest.mark.parametrize("gate", ["load_ms<=10", "first_ms<=10", "memory_mb<=10"])
def test_a_gate_on_a_start_that_is_not_measured_is_refused_before_any_work(gate: str) -> None:
    with pytest.raises(RecipeError, match="no start is measured") as caught:
        parse_gates_of("tokenizer", ["psnr>=1", gate], starts=False)
    assert "--starts 1" in str(caught.value)
    assert parse_gates_of("tokenizer", ["psnr>=1", "p90_ms<=5"], starts=False)


def test_starts_are_not_said_to_be_of_a_busy_machine(measured: Report) -> None:
    """It is watched while rounds are timed, and starts come later."""
    load = MachineLoad(processors=4, others_before=2.0, others_during=2.0, others_after=2.0)
    busy = msgspec.structs.replace(measured, machine=load)
    gates = parse_gates(
        ["load_ms<=25", "p90_ms<=50", "images_per_s>=1", "tokens.p99_ms>=0"], METRIC_NAMES
    )
    start, *rounds = judged(busy, gates).gates
    assert busy.busy and start.reason is None
    assert all("busy machine" in str(gate.reason) for gate in rounds)
    (unknown,) = judged(busy, parse_gates(["encoder.p90_ms<=5"], METRIC_NAMES)).gates
    assert unknown.reason == "encoder.p90_ms was not measured"
