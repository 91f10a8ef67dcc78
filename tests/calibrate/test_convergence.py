"""How scales grow with the samples, against plain numpy over the first half and over all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.convergence import Convergence, RangeGrowth, SiteGrowth, convergence
from arvg_trt.calibrate.statistics import TensorStats

from ..families.generators import TinyGenerator, activations
from ..families.tiny import TinyExport, silent


def stats_of(rows: np.ndarray) -> TensorStats:
    """Return the statistics of rows [N, C]."""
    return TensorStats(rows.min(0), rows.max(0), np.square(rows).sum(0), len(rows))


def grown(batches: list[np.ndarray], positions: list[np.ndarray] | None = None) -> RangeGrowth:
    growth = RangeGrowth(len(batches))
    for k, batch in enumerate(batches):
        growth.add("site", stats_of(batch))
        if positions:
            growth.add("site:position", stats_of(positions[k]))
        growth.add("site:output", stats_of(batch * 2**k))  # never settles, and does not count
    return growth


def test_growth_is_the_share_that_the_last_half_added() -> None:
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(64, 40)), rng.normal(size=(64, 7))
    found = convergence(grown(np.split(rows, 8), np.split(others, 8)))
    assert found.share == 0.5 and len(found.sites) == 1
    (site,) = found.sites
    half, width = rows[:32], np.ptp(rows, axis=0)
    assert site.tensor == pytest.approx(1 - np.abs(half).max() / np.abs(rows).max())
    assert site.channels == pytest.approx(np.quantile(1 - np.ptp(half, axis=0) / width, 0.95))
    reach = 1 - np.abs(others[:32]).max(axis=0) / np.abs(others).max(axis=0)
    assert site.positions == pytest.approx(np.quantile(reach, 0.95))
    rms = 1 - np.sqrt(np.square(half).mean(0) / np.square(rows).mean(0))
    assert site.rms == pytest.approx(np.quantile(np.abs(rms), 0.95))
    quarter = 1 - np.ptp(rows[:16], axis=0) / np.ptp(half, axis=0)
    assert found.earlier == pytest.approx(np.quantile(quarter, 0.95))
    assert found.later == site.channels


def test_repeated_batches_have_converged_and_a_late_outlier_has_not() -> None:
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, 40))
    settled = convergence(grown([batch] * 4))
    assert settled.enough and settled.settled == 1
    assert settled.text == "the ranges of 1 of 1 layer inputs have settled"
    late = convergence(grown([batch] * 3 + [1.2 * batch]))
    assert late.enough is False and late.settled == 0
    assert late.text == (
        "the ranges of 0 of 1 layer inputs have settled; site's still grew by 17 % over the last "
        "50 % of the samples: if a gate fails, calibrate with more samples"
    )


def test_single_channels_that_grow_are_told_from_ranges_that_do() -> None:
    signs = np.where(np.arange(8) % 2, 1, -1)[:, None]

    def rows(scale: float) -> np.ndarray:
        return signs * np.where(np.arange(40) < 4, scale, 3.0)

    found = convergence(grown([rows(0.1), rows(0.1), rows(0.1), rows(0.4)]))
    assert found.sites[0].channels > 0.7 and found.sites[0].tensor == 0
    assert found.enough and found.settled == 1
    assert found.text == "the ranges of 1 of 1 layer inputs have settled"


def site(name: str, tensor: float, positions: float | None = None) -> SiteGrowth:
    return SiteGrowth(name=name, tensor=tensor, channels=0.0, rms=0.0, positions=positions)


def test_the_line_names_what_is_farthest_beyond_its_limit() -> None:
    """Positions have twice the limit of tensors; NaN is beyond any."""
    rows = (site("a", 0.06), site("b", 0.0, 0.3), site("c", 0.12), site("d", 0.01))
    found = Convergence(enough=False, settled=1, share=0.5, sites=rows)
    assert "of 1 of 4 layer inputs have settled; b's still grew by 30 %" in found.text


@pytest.mark.parametrize(("late", "enough"), [(0, True), (1, True), (2, False)])
def test_one_in_twenty_inputs_may_still_grow(late: int, enough: bool) -> None:
    growth = RangeGrowth(4)
    batch = np.random.default_rng(0).normal(size=(8, 40))
    for part in range(4):
        for k in range(20):
            scale = 2.0 if part == 3 and k < late else 1.0
            growth.add(f"site{k}", stats_of(scale * batch))
    found = convergence(growth)
    assert (found.settled, found.enough) == (20 - late, enough)


def test_dead_channels_and_zeros_have_converged() -> None:
    found = convergence(grown([np.zeros((3, 5))] * 4))
    assert found.enough and found.sites[0].channels == 0 == found.sites[0].tensor


@pytest.mark.parametrize(
    ("parts", "marks"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 2)), (7, (2, 4)), (64, (16, 32))]
)
def test_marks_lie_at_a_quarter_and_at_half(parts: int, marks: tuple[int, ...]) -> None:
    assert RangeGrowth(parts).marks == marks


def test_one_batch_tells_nothing() -> None:
    found = convergence(grown([np.ones((3, 5))]))
    assert found.enough is None and "too few batches" in found.text


def test_a_pass_keeps_what_the_first_half_of_its_batches_showed(tiny_var: TinyGenerator) -> None:
    growth = RangeGrowth(5)
    total = CalibrationRun(
        tiny_var.folder, tiny_var.samples, (tiny_var.full_sites[0].graph,), 1, silent
    ).input_ranges(tiny_var.full_sites, growth=growth)
    site = next(s for s in tiny_var.full_sites if s.role == "fc2")
    x = activations(tiny_var.folder / "full.onnx", tiny_var.feeds(), [site.input])[site.input]
    half = growth.at[3]
    np.testing.assert_allclose(half[site.name].high, x[:3].max(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    key = f"{site.name}:position"
    np.testing.assert_allclose(half[key].high, x[:3].max(axis=(0, 2)), rtol=1e-4, atol=1e-5)
    assert np.array_equal(growth.total[site.name].high, total[site.name].high)
    rows = {row.name for row in convergence(growth).sites}
    sites = {name for name in total if not name.endswith(":position")}
    assert site.name in rows and rows < sites  # those that share an input count once


def test_a_tokenizers_pass_does_so_for_both_halves(tiny_di: TinyExport, samples: Path) -> None:
    growth = RangeGrowth(3)  # five samples by two
    CalibrationRun(tiny_di.folder, samples, tiny_di.sites.graphs, 2, silent).channel_ranges(
        tiny_di.sites, growth=growth
    )
    found = convergence(growth)
    assert {row.name.partition(".")[0] for row in found.sites} >= {"encoder", "decoder"}
    assert found.share == 2 / 3 and growth.at.keys() == {1, 2}
