"""Classes of a generator's own pictures: even, drawn over all, others for validation."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.pipeline.validate import calibrated_classes
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.samples.classes import drawn_classes, saved_classes
from arvg_trt.samples.files import GraphRun, save_sample
from arvg_trt.samples.sources import held_out_images
from arvg_trt.workspace.facts import Exported
from arvg_trt.workspace.workspace import Workspace

from ..command_line import arvg
from ..families.rar.models import TinyRar


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 2**32), st.data())
def test_classes_are_even_seeded_and_unused_ones_come_first(
    num_classes: int, count: int, seed: int, data: st.DataObject
) -> None:
    used = data.draw(st.sets(st.integers(0, num_classes - 1)))
    found = drawn_classes(num_classes, count, seed, used)
    assert found == drawn_classes(num_classes, count, seed, used)
    times = Counter(found)
    assert len(found) == count and set(found) <= set(range(num_classes))
    assert max(times.values()) - min(times[c] for c in range(num_classes)) <= 1
    rest = found[count - count % num_classes :]
    if len(rest) <= num_classes - len(used):
        assert not used & set(rest)
    else:
        assert set(range(num_classes)) - used <= set(rest)


def test_sixty_four_of_a_thousand_classes_are_no_corner_and_validation_has_others() -> None:
    calibration = drawn_classes(1000, 64, 0)
    validation = drawn_classes(1000, 32, 1000, calibration)
    assert len(set(calibration)) == 64 and len(set(validation)) == 32
    assert not set(calibration) & set(validation)
    # A corner of 64 has all of them below 64; drawn ones are spread as uniform numbers are.
    for found in (calibration, validation):
        assert 350 < np.mean(found) < 650 and min(found) < 150 and max(found) > 850
    assert drawn_classes(1000, 64, 1) != calibration


def test_few_classes_are_taken_in_turn() -> None:
    assert drawn_classes(10, 40, 7) == [*range(10)] * 4
    assert sorted(drawn_classes(10, 10, 7)) == [*range(10)]


@pytest.mark.parametrize("null", [5, 6])
def test_classes_are_read_from_saved_samples(tmp_path: Path, null: int) -> None:
    for k, label in enumerate((3, 1, 5, 3)):
        save_sample({"labels": np.array([label]), "tokens": np.zeros((1, 4))}, tmp_path, k)
    save_sample(GraphRun("pass", {"labels": np.array([0, 5])}), tmp_path, 4)
    save_sample(GraphRun("denoise", {"time": np.array([3])}), tmp_path, 5)
    assert saved_classes(tmp_path, null) == [0, 1, 3] + [5] * (null == 6)


def test_a_validation_is_of_classes_that_calibration_has_not_seen(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "ws")
    shutil.copytree(tiny_rar.workspace, workspace.root)
    options = ValidateOptions(samples=3)
    assert len(set(drawn(workspace, options))) == 3
    outcome = arvg("calibrate", workspace.root, "--samples", 2)
    assert outcome.code == 0, outcome
    manifest = workspace.manifest("calibrate", stage="calibrate")
    seen = manifest.options["classes"]
    assert len(seen) == 2 and manifest.results["classes"] == sorted(seen)
    assert set(drawn(workspace, options)) == set(range(5)) - set(seen)
    # Those that are named are taken as they are.
    named = ValidateOptions(samples=3, labels=f"{seen[0]}")
    assert drawn(workspace, named) == (seen[0],) * 3


def drawn(workspace: Workspace, options: ValidateOptions) -> tuple[int, ...]:
    seen = calibrated_classes(workspace)
    return held_out_images(Exported.open(workspace), options, seen)[0].labels
