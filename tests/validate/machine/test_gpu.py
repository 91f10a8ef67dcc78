"""A tool that answers as NVIDIA's does tells of a GPU. No GPU was asked here."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvg_trt.validate.machine.gpu import MIB, PeakMemory, read_gpu


def tool(folder: Path, body: str) -> str:
    path = folder / "smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_figures_are_read_in_the_order_they_are_asked(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    found = read_gpu(3, tool(tmp_path, f'echo "$@" > {asked}; echo "1024, 1980, 2619, 7"'))
    assert found is not None
    assert (found.memory_bytes, found.megahertz) == (1024 * MIB, 1980.0)
    assert (found.memory_megahertz, found.busy_percent) == (2619.0, 7.0)
    words = asked.read_text()
    assert (
        "memory.used,clocks.sm,clocks.mem,utilization.gpu" in words and words.strip()[-4:] == "-i 3"
    )


def test_what_a_gpu_does_not_count_is_none(tmp_path: Path) -> None:
    found = read_gpu(0, tool(tmp_path, 'echo "512, 1300, [N/A], [N/A]"'))
    assert found is not None and found.memory_megahertz is None is found.busy_percent


@pytest.mark.parametrize(
    "body", ["exit 9", "echo No devices were found", 'echo "[N/A], [N/A], 1, 2"', "echo 1,2,3"]
)
def test_a_tool_that_fails_tells_nothing(tmp_path: Path, body: str) -> None:
    assert read_gpu(0, tool(tmp_path, body)) is None
    assert read_gpu(0, str(tmp_path / "missing")) is None


def test_a_peak_is_above_what_was_in_use_before(tmp_path: Path) -> None:
    level = tmp_path / "level"
    level.write_text("100")
    program = tool(tmp_path, f'echo "$(cat {level}), 1, 1, 1"')
    with PeakMemory(0, program) as peak:
        level.write_text("350")
        while peak.bytes != 250 * MIB:
            pass
        level.write_text("120")
    assert peak.bytes == 250 * MIB
    with PeakMemory(0, str(tmp_path / "missing")) as nothing:
        pass
    assert nothing.bytes is None
