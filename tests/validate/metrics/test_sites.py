"""Errors of sites add up over samples as float64 sums have them, and the worst ones are kept."""

from __future__ import annotations

import numpy as np
import pytest

from arvg_trt.validate.metrics.sites import KEPT, SiteAccumulator


def test_sums_are_those_of_all_parts_of_a_sample() -> None:
    rng, sites = np.random.default_rng(0), SiteAccumulator()
    signal, noise = np.zeros((3, 2)), np.zeros((3, 2))
    for k in (0, 1, 2, 0, 2):  # a sample comes in several parts
        for n, name in enumerate(("a", "b")):
            fp32 = rng.normal(0, 1, (2, 7)).astype(np.float32)
            own = fp32 + rng.normal(0, 0.1 + n, fp32.shape).astype(np.float32)
            sites.add(name, f"image {k}", fp32, own)
            signal[k, n] += np.square(fp32.astype(np.float64)).sum()
            noise[k, n] += np.square(fp32.astype(np.float64) - own).sum()
    wanted = 10 * np.log10(signal.sum(axis=0) / noise.sum(axis=0))
    assert list(sites.decibels()) == ["a", "b"]
    assert list(sites.decibels().values()) == pytest.approx(list(wanted), rel=1e-12)
    worst = sites.worst()
    assert list(worst) == ["b", "a"]
    for n, name in enumerate(("a", "b")):
        assert worst[name]["signal"] == pytest.approx(signal[:, n], rel=1e-12)
        assert worst[name]["noise"] == pytest.approx(noise[:, n], rel=1e-12)


def test_the_worst_sites_are_kept_and_one_without_error_is_the_best() -> None:
    sites, ones = SiteAccumulator(), np.ones(4)
    sites.add("exact", "image", ones, ones)
    for n in range(KEPT + 3):
        sites.add(f"site {n}", "image", ones, ones + 0.001 * (n + 1))
    assert sites.decibels()["exact"] is None
    assert list(sites.worst()) == [f"site {n}" for n in range(KEPT + 2, 2, -1)]
