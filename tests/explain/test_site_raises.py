"""The time that raising a site costs on a target, by the bytes and operations of its product."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command_line import arvg, assert_refused
from .test_site_diagnosis import diagnosed, held_out

BANDWIDTH = 1e9
SHAPES = {"first": (24, 32), "second": (32, 16), "last": (16, 8)}
ROWS = 4


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """One that only bytes keep busy, and that has no half precision."""
    path = tmp_path / "slow.json"
    fields = {"name": "slow", "bandwidth": BANDWIDTH, "peaks": {"fp32": 1e15, "w8a8": 4e15}}
    path.write_text(json.dumps({"schema": "arvg-trt/machine/v1", "source": "test", **fields}))
    return path


def by_hand(site: str) -> float:
    """Microseconds: 32 bits of everything in place of 8 of weight and input, and 16 of output."""
    depth, width = SHAPES[site]
    weights, inputs, outputs = depth * width, ROWS * depth, ROWS * width
    fp32 = 4 * (weights + inputs + outputs)
    return 1e6 * (fp32 - (weights + inputs + 2 * outputs)) / BANDWIDTH


def test_times_are_those_of_the_bytes_that_a_product_moves(copied: Path, machine: Path) -> None:
    options = ("--name", "plain", *held_out(copied), "--raise", 2)
    found = diagnosed(copied / "ws", *options, "--target", machine)
    assert found["target"] == "slow" and len(found["raised"]) == 2
    for row in found["raised"]:
        assert row["us"] == pytest.approx(by_hand(row["name"]), rel=1e-9)
    page = (copied / "ws/diagnose/plain/diagnosis.md").read_text()
    assert "An image on slow, predicted" in page and " µs" in page
    without = diagnosed(copied / "ws", *options)
    assert "target" not in without and all("us" not in row for row in without["raised"])


def test_sites_are_ranked_by_what_a_microsecond_gains(copied: Path, machine: Path) -> None:
    options = ("--name", "plain", *held_out(copied), "--raise", 2, "--target", machine)
    found = diagnosed(copied / "ws", *options, "--rank", "gain_per_us")
    shares = {site["name"]: site["share"] for site in found["sites"]}
    order = sorted(SHAPES, key=lambda name: -shares[name] / by_hand(name))
    assert [row["name"] for row in found["raised"]] == order[:2]


def test_more_bits_that_run_as_the_same_format_take_no_longer(copied: Path, machine: Path) -> None:
    options = ("--name", "plain", *held_out(copied), "--raise", 1, "--to", "8bit")
    (row,) = diagnosed(copied / "ws", *options, "--target", machine)["raised"]
    assert row["us"] == 0 and row["kib"] > 0


def test_targets_that_are_none_are_refused(copied: Path) -> None:
    command = ("diagnose", copied / "ws", "--name", "plain", *held_out(copied))
    assert_refused(arvg(*command, "--rank", "gain_per_us"), 3, "needs a --target")
    assert_refused(arvg(*command, "--target", "rtx9999"), 6, "rtx9999")
    assert not (copied / "ws/diagnose").exists()
