"""The header of an engine: what it says, and what contradicts what is said of it."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from arvg_trt.benchmarks.fuzz.bundles import plan
from arvg_trt.runtime.bundle.plan_header import (
    PlanHeader,
    parse_plan_header,
    plan_problem,
    read_plan_header,
)

TARGETS = ("sm86", "sm89")


def test_header_says_version_size_and_targets(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(plan("1.7.0.25"))
    header = read_plan_header(path)
    size = path.stat().st_size
    assert header == PlanHeader(version="1.7.0.25", size=size, targets=TARGETS, bytes=size)
    assert plan_problem(header, "tensorrt_rtx", "1.7.0.25", TARGETS) is None
    assert plan_problem(header, "tensorrt_rtx", "1.7.0.25", ("sm89",)) is None


@pytest.mark.parametrize(
    ("data", "version", "targets", "problem"),
    [
        (plan("1.8.0.1"), "1.7.0.25", TARGETS, "was built by version 1.8.0.1, not 1.7.0.25"),
        (plan(targets="sm75"), "1.7.0.25", TARGETS, "is for sm75, not for sm86 sm89"),
        (plan(), "1.7.0.25", ("sm86", "sm120"), "is for sm86 sm89, not for sm120"),
        (plan(size=2**64 - 1), "1.7.0.25", TARGETS, "is cut off: 53 of 18,446,744,073,709,551,615"),
        (plan(size=0), "1.7.0.25", TARGETS, "has 53 bytes, and its header says 0"),
        (plan()[:-1], "1.7.0.25", TARGETS, "is cut off: 52 of 53 bytes"),
        (plan() + b"x", "1.7.0.25", TARGETS, "has 54 bytes, and its header says 53"),
        (b"", "1.7.0.25", TARGETS, "is empty"),
        (b"ftrt" + bytes(99), "1.7.0.25", TARGETS, "is no engine of TensorRT for RTX"),
    ],
)
def test_contradiction_is_named(
    data: bytes, version: str, targets: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(data)
    header = read_plan_header(path)
    assert header == parse_plan_header(memoryview(data), "x.engine")
    assert header is not None
    found = plan_problem(header, "tensorrt_rtx", version, targets)
    assert found is not None and found.startswith(problem)


@pytest.mark.parametrize("data", [b"", b"v", b"vtrt", b"vtrt" + bytes(23), b"ftrt" + bytes(99)])
def test_engine_without_a_header_that_is_known_says_its_size_alone(data: bytes) -> None:
    assert parse_plan_header(memoryview(data), "x.engine") == PlanHeader(bytes=len(data))
    assert parse_plan_header(memoryview(data), "x.onnx") is None


@pytest.mark.parametrize(
    "list_", [b"", b"sm86", b"sm8 ", b"sm8600 ", b"sm86\n", b"86 ", b"\xff\xff ", b"sm86  sm89 "]
)
def test_list_of_targets_of_another_form_is_not_guessed(list_: bytes) -> None:
    data = plan()[:28] + b"accelerators={" + list_ + b"}"
    header = parse_plan_header(memoryview(data), "x.engine")
    assert header is not None and header.targets == ()


def test_endless_list_of_targets_takes_neither_time_nor_memory() -> None:
    data = plan()[:28] + b"accelerators={" + b"sm86 " * 4_000_000
    tracemalloc.start()
    start = time.monotonic()
    header = parse_plan_header(memoryview(data), "x.engine")
    seconds = time.monotonic() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header is not None and header.targets == ()
    assert peak < 1e6
    assert seconds < 5
