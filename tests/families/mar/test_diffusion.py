"""The respaced diffusion against the textbook's formulas, in exact or float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.families.mar.diffusion import Diffusion, cosine_betas, respaced
from arvg_trt.runtime.spec import TIMES


def kept_by_formula(time: int) -> float:
    """The product of all 1 - beta up to a time, beta by beta."""
    found = 1.0
    for i in range(time + 1):
        a, b = (math.cos((j / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (i, i + 1))
        found *= 1 - min(1 - b / a, 0.999)
    return found


def test_a_hundred_steps_keep_the_official_times() -> None:
    times = respaced(100).tolist()
    assert times[:8] == [0, 10, 20, 30, 40, 50, 61, 71]
    assert times[-2:] == [989, 999]
    assert len(set(times)) == 100


@pytest.mark.parametrize("steps", [2, 3, 50, 999, TIMES])
def test_times_rise_from_the_first_to_the_last(steps: int) -> None:
    times = respaced(steps)
    assert (times[0], times[-1], len(times)) == (0, TIMES - 1, steps)
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("steps", [5, 100, TIMES])
def test_constants_are_the_formulas(steps: int) -> None:
    found = Diffusion.of(steps)
    for i in {0, 1, 3, steps - 1}:
        kept = kept_by_formula(int(found.times[i]))
        before = kept_by_formula(int(found.times[i - 1])) if i else 1.0
        beta = 1 - kept / before
        np.testing.assert_allclose(found.alpha_bar[i], kept, rtol=1e-10)
        np.testing.assert_allclose(found.clean_of_x[i], kept**-0.5, rtol=1e-10)
        np.testing.assert_allclose(found.clean_of_noise[i], ((1 - kept) / kept) ** 0.5, rtol=1e-9)
        wanted = beta * before**0.5 / (1 - kept)
        np.testing.assert_allclose(found.mean_of_clean[i], wanted, rtol=1e-9)
        wanted = (1 - before) * (1 - beta) ** 0.5 / (1 - kept)
        np.testing.assert_allclose(found.mean_of_x[i], wanted, rtol=1e-9)
        np.testing.assert_allclose(found.log_most[i], math.log(beta), rtol=1e-9)
        if i:
            wanted = math.log(beta * (1 - before) / (1 - kept))
            np.testing.assert_allclose(found.log_least[i], wanted, rtol=1e-9)
    assert found.log_least[0] == found.log_least[1]


def test_the_first_step_back_multiplies_errors_by_twenty_thousand() -> None:
    assert Diffusion.of(100).clean_of_x[-1] == pytest.approx(2.0e4, rel=0.05)
    assert (cosine_betas() <= 0.999).all() and cosine_betas()[-1] == 0.999


def test_a_perfect_prediction_ends_at_the_clean_token() -> None:
    """With the true noise known at every step, what is left at the end is the token itself."""
    rng = np.random.default_rng(0)
    diffusion = Diffusion.of(25)
    clean = rng.standard_normal((3, 4))
    x = rng.standard_normal((3, 4))
    for step in reversed(range(25)):
        kept = diffusion.alpha_bar[step]
        noise = (x - kept**0.5 * clean) / (1 - kept) ** 0.5
        x = diffusion.back(step, x, noise, np.ones_like(x), rng.standard_normal((3, 4)))
    np.testing.assert_allclose(x, clean, atol=1e-9)


def test_the_spread_interpolates_the_log_of_the_variance() -> None:
    diffusion, step = Diffusion.of(10), 4
    zeros, ones = np.zeros((1, 1)), np.ones((1, 1))
    deviations = {
        spread: float(diffusion.back(step, zeros, zeros, spread * ones, ones)[0, 0])
        for spread in (-1.0, 0.0, 1.0)
    }
    assert deviations[1.0] == pytest.approx(math.exp(0.5 * diffusion.log_most[step]))
    assert deviations[-1.0] == pytest.approx(math.exp(0.5 * diffusion.log_least[step]))
    assert deviations[0.0] == pytest.approx((deviations[1.0] * deviations[-1.0]) ** 0.5)
    assert diffusion.back(0, zeros, zeros, ones, ones)[0, 0] == 0
