"""RAR's loop, in what it does not share with other families."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.families.rar.loop import strength
from arvg_trt.families.rar.spec import ROWS_AHEAD
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sampling import Sampling

from .models import SMALL, TinyRar

LABELS = [4, 0, 2]


@pytest.mark.usefixtures("one_thread")
def test_modulations_made_ahead_are_those_of_each_step(
    tiny_rar: TinyRar, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator.open(tiny_rar.workspace, threads=1)
    whole = generator.generate(LABELS)
    for rows_ahead in (1, 7, 10**6):
        monkeypatch.setattr("arvg_trt.families.rar.loop.ROWS_AHEAD", rows_ahead)
        assert np.array_equal(generator.generate(LABELS).tokens, whole.tokens)
    assert 2 * len(LABELS) * 2 < ROWS_AHEAD < 2 * len(LABELS) * SMALL.length  # several, not all


@pytest.mark.parametrize("power", [0.0, 1.2, 2.75])
def test_guidance_rises_from_none_to_almost_all(power: float) -> None:
    sampling = Sampling(cfg=16.0, top_k=0, top_p=1.0, cfg_power=power)
    found = np.array([strength(sampling, k, 256) for k in range(256)])
    assert np.all(np.diff(found) >= 0)
    if power == 0:  # 0 ** 0 is 1: all of it, always
        np.testing.assert_allclose(found, 15.0)
    else:
        assert found[0] == 0 and 14.9 < found[-1] < 15
    half = strength(sampling, 128, 256)
    assert half == pytest.approx(7.5 * (1 - math.cos(math.pi * 0.5**power)))
