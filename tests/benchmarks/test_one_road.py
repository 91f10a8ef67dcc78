"""The parts of `one_road` that compute: rows are halved, plans edited, inputs counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.benchmarks.one_road import Row, counts, split_rows, table, with_token_scales
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.samples.files import save_sample

WEIGHT, INPUT = WeightFormat(bits=8), ActivationFormat(bits=8, scale=0.5)


def site(name: str, tensor: str, *, positions: bool) -> Site:
    return Site(
        name=name,
        graph="full",
        role="fc1",
        op="MatMul",
        node=name,
        weight=f"{name}.weight",
        bias=None,
        input=tensor,
        output=f"{name}.output",
        weight_shape=(8, 8),
        token_axis=1 if positions else None,
        of_all_positions=positions,
    )


SITES = SiteMap(
    sites=(
        site("q", "normed", positions=True),
        site("k", "normed", positions=True),
        site("fc1", "x", positions=True),
        site("condition", "c", positions=False),
        site("head", "h", positions=True),
    ),
    graphs=("full",),
)
PLAN = Plan(
    sites=(
        SitePlan(name="q", weight=WEIGHT, activation=INPUT, smoothing="gps"),
        SitePlan(name="k", weight=WEIGHT, activation=INPUT, smoothing="gps"),
        SitePlan(name="fc1", weight=WEIGHT, activation=INPUT, smoothing=0.5),
        SitePlan(name="condition", weight=WEIGHT, activation=INPUT),
        SitePlan(name="head", weight=WEIGHT, reason="its input stays in high precision"),
    )
)


def test_rows_of_the_first_half_are_fitted_and_the_others_left_out(tmp_path: Path) -> None:
    for k in range(5):
        row = {"labels": np.array([k]), "tokens": np.full((1, 3), 10 * k, np.int32)}
        save_sample(row, tmp_path, k)
    fitted, held_out = split_rows(tmp_path)
    assert fitted["labels"].tolist() == [0, 1] and held_out["labels"].tolist() == [2, 3, 4]
    assert held_out["tokens"].tolist() == [[20] * 3, [30] * 3, [40] * 3]
    assert held_out["tokens"].dtype == np.int32


def test_inputs_are_counted_once_for_all_sites_that_read_them() -> None:
    assert counts(PLAN, SITES) == (1, 0, 3)


def test_an_edited_plan_has_a_scale_per_token_where_tokens_have_positions() -> None:
    edited = with_token_scales(PLAN, SITES)
    found = {e.name: e.activation and e.activation.granularity for e in edited.sites}
    per_token = dict.fromkeys(("q", "k", "fc1"), "per_position")
    assert found == {**per_token, "condition": "per_tensor", "head": None}
    assert [e.activation.scale for e in edited.sites if e.activation] == [0.5] * 4
    assert counts(edited, SITES) == (1, 2, 3)


@pytest.mark.parametrize(("db", "shown"), [(38.317, "| 38.32 |"), (float("inf"), "| exact |")])
def test_the_table_has_a_line_a_row(db: float, shown: str) -> None:
    row = Row("rar-mini", "W8A8", "gps", "none", db, by_gps=1, per_token=0, inputs=3)
    line = table([row]).splitlines()[-1]
    assert line.startswith("| rar-mini | W8A8 | gps | none |") and shown in line
    assert line.endswith("| 1 of 3 | 0 of 3 |")
