"""A graph without observers runs once, and gives the next what it would give each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers import run, upstream
from arvg_trt.calibrate.observers.smoothed import plain_input
from arvg_trt.calibrate.observers.upstream import UpstreamKey, UpstreamOutputs

from ...families.tiny import TinyExport, silent

KEY = UpstreamKey("export", "encoder", ("decoder",), "samples", ("0.png",), 2)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs of the sessions that are opened, in order."""
    found: list[str] = []
    open_session = run.open_instrumented

    def spy(path: Path, *args: Any, **options: Any) -> Any:
        found.append(path.stem)
        return open_session(path, *args, **options)

    monkeypatch.setattr(run, "open_instrumented", spy)
    return found


def ranges_of(made: CalibrationRun, source: TinyExport) -> dict[str, np.ndarray]:
    sites = [s for s in source.sites.of_graph("decoder") if s.weight is not None][:3]
    found = made.inside("decoder").ranges({site.name: plain_input(site) for site in sites})
    return {name: np.stack([stats.low, stats.high, stats.square]) for name, stats in found.items()}


def whole(source: TinyExport, samples: Path) -> CalibrationRun:
    return CalibrationRun(source.folder, samples, ("encoder", "decoder"), 2, silent)


def test_an_encoder_runs_once_while_its_decoder_is_observed_again(
    tiny_di: TinyExport, samples: Path, opened: list[str]
) -> None:
    made = whole(tiny_di, samples)
    first, again = (ranges_of(made, tiny_di) for _ in range(2))
    assert opened == ["encoder", "decoder", "decoder"]
    fresh = ranges_of(whole(tiny_di, samples), tiny_di)
    for name, wanted in fresh.items():
        assert np.array_equal(first[name], wanted) and np.array_equal(again[name], wanted)


def test_other_samples_and_batches_run_the_encoder_again(
    tiny_di: TinyExport, samples: Path, opened: list[str]
) -> None:
    made = whole(tiny_di, samples)
    parts = [ranges_of(made.of(part), tiny_di) for part in (slice(0, 2), slice(2, 4))]
    assert opened == ["encoder", "decoder"] * 2
    assert any(not np.array_equal(parts[0][name], parts[1][name]) for name in parts[0])


def test_what_would_be_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MOST_BYTES", 100)
    outputs, small = UpstreamOutputs(), {"0.png": {"tokens": np.zeros(60, np.uint8)}}
    outputs.keep(KEY, small)
    assert outputs.find(KEY) is small
    other = KEY._replace(files=("1.png",))
    outputs.keep(other, small)
    assert outputs.find(other) is None and outputs.find(KEY) is small
