"""The peak of memory is that of a block, also of blocks within blocks."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import msgspec
import pytest

from arvg_trt.workspace import peak_memory
from arvg_trt.workspace.peak_memory import resident_peak, status_bytes
from arvg_trt.workspace.worker_process import REQUEST, RESULT, Answer, answer, result_of

MB = 1_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak")


def take(megabytes: int) -> None:
    """Touch pages that the process has not had, and give them back."""
    with mmap.mmap(-1, megabytes * MB) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


@linux
def test_a_block_has_its_own_peak_and_not_that_of_what_ran_before() -> None:
    take(300)
    before = status_bytes("VmRSS")
    with resident_peak() as small:
        take(20)
    with resident_peak() as large:
        take(200)
    assert before is not None and small.bytes is not None and large.bytes is not None
    assert 15 * MB < small.bytes - before < 150 * MB
    assert 180 * MB < large.bytes - before < 290 * MB


@linux
def test_a_block_within_another_hides_no_peak_of_it() -> None:
    before = status_bytes("VmRSS")
    with resident_peak() as outer:
        take(300)
        with resident_peak() as inner:
            take(50)
    assert before is not None and outer.bytes is not None and inner.bytes is not None
    assert outer.bytes - before > 280 * MB
    assert inner.bytes - before < 200 * MB
    with resident_peak() as outer, resident_peak() as inner:
        take(200)
    assert outer.bytes == inner.bytes


@linux
def test_a_block_that_fails_is_followed_no_longer() -> None:
    with pytest.raises(ValueError, match="fails"), resident_peak():
        raise ValueError("fails")
    assert not peak_memory._followed


def test_where_the_system_does_not_allow_it_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peak_memory, "RESET", tmp_path / "absent" / "clear_refs")
    with resident_peak() as found:
        take(10)
    assert found.bytes is None
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "absent")
    assert status_bytes("VmHWM") is None


@linux
def test_a_subprocess_counts_beside_what_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])
    (tmp_path / REQUEST).write_bytes(b"250")
    answer(int, take)
    told = msgspec.json.decode((tmp_path / RESULT).read_bytes(), type=Answer).memory
    held = status_bytes("VmRSS")
    assert told is not None and held is not None and told > 240 * MB
    with resident_peak() as waited:
        assert result_of(tmp_path, type(None)) is None
    assert waited.bytes is not None and waited.bytes > told + 0.9 * held
