"""Linux tells of the processors in files of its form; another file tells nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arvg_trt.validate.machine.processor import (
    STAT,
    Reading,
    governor,
    load_average,
    megahertz,
    others,
    read_processors,
)


def test_work_is_all_but_idle_and_waiting(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    file.write_text("cpu  100 20 30 9999 888 4 5 6 77 66\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    found = read_processors(file)
    assert found is not None
    assert found.busy == pytest.approx((100 + 20 + 30 + 4 + 5 + 6) / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\n", "intr 1 2 3 4 5 6 7 8 9\n", "cpu a b\n"])
def test_a_file_of_another_form_tells_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "stat"
    assert read_processors(file) is None
    file.write_text(text)
    assert read_processors(file) is None


def test_others_do_what_this_process_does_not() -> None:
    first, last = Reading(10.0, 500.0, 3.0), Reading(14.0, 510.0, 9.0)
    assert others(first, last) == pytest.approx((10 - 6) / 4)
    assert others(first, Reading(14.0, 505.0, 9.0)) == 0.0  # ticks are coarser than our clock
    assert others(None, last) is others(first, None) is others(last, last) is None


@pytest.mark.skipif(not STAT.is_file(), reason="Linux tells it")
def test_another_process_at_work_is_seen_and_this_one_is_not() -> None:
    spin = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        try:
            time.sleep(0.2)
            first = read_processors()
            time.sleep(1.0)
            found = others(first, read_processors())
        finally:
            other.kill()
    assert found is not None and found > 0.05
    first = read_processors()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    last = read_processors()
    assert first is not None and last is not None
    assert last.own - first.own >= 0.5
    assert others(first, last) == pytest.approx(
        max(0.0, (last.busy - first.busy - last.own + first.own) / (last.at - first.at))
    )


def test_clocks_are_the_mean_of_all_processors(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert megahertz(file) is None
    file.write_text("processor\t: 0\ncpu MHz\t\t: 2000.0\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.5\n")
    assert megahertz(file) == pytest.approx(2500.25)
    file.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # as of ARM
    assert megahertz(file) is None


def test_the_rule_of_clocks_may_be_missing(tmp_path: Path) -> None:
    file = tmp_path / "scaling_governor"
    assert governor(file) is None
    file.write_text("performance\n")
    assert governor(file) == "performance"
    file.write_text("\n")
    assert governor(file) is None


def test_the_load_average_is_a_number_or_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_average() or 0.0) >= 0.0
    monkeypatch.delattr(os, "getloadavg")
    assert load_average() is None
