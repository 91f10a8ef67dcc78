"""A plan's linears get the format that a target is fastest with, and the plan says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.engines.roofline.fit import WORTH, choose, fit_plan
from arvg_trt.engines.roofline.machine import Machine
from arvg_trt.engines.roofline.predict import Prediction, WeightCost, product_cost
from arvg_trt.engines.roofline.products import Product
from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.quantize.plan import check_plan
from arvg_trt.recipe.base import with_changes
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.workspace.files import decode_json

from ...command_line import arvg, assert_refused

MACHINE = Machine(
    name="card",
    bandwidth=1e9,
    peaks={"fp16": 1e11, "w8a16": 1e11, "w4a16": 1e11, "w8a8": 4e11},
    source="made up",
)
INT8 = WeightFormat(bits=8)


def cost(rows: int, depth: int = 512, width: int = 512) -> WeightCost:
    """The cost of a linear with so many rows on the machine."""
    product = Product(
        "p", "w", rows, rows * depth * width, depth * width, rows * depth, rows * width
    )
    costs = {form: product_cost(product, form, MACHINE) for form in MACHINE.peaks}
    return WeightCost(
        seconds={form: each.seconds for form, each in costs.items()},
        weight_seconds={f: c.weight_bytes / MACHINE.bandwidth for f, c in costs.items()},
        rows=(rows, rows),
    )


def predicted(**sites: WeightCost) -> Prediction:
    return Prediction(MACHINE, 1, [], sites)


def test_one_row_gets_weights_alone_and_many_rows_both() -> None:
    narrow = choose(["a"], "w8a8", "w8a16", predicted(a=cost(1)))
    assert narrow.form == "w8a16"
    assert narrow.reason is not None and "1 to 1 rows: bandwidth-bound, 0.99" in narrow.reason
    assert choose(["a"], "w8a8", "w8a16", predicted(a=cost(4096))).form == "w8a8"


@given(rows=st.integers(1, 10**4), depth=st.integers(64, 4096), width=st.integers(64, 4096))
def test_what_is_chosen_is_as_fast_as_anything(rows: int, depth: int, width: int) -> None:
    found = predicted(a=cost(rows, depth, width))
    chosen = choose(["a"], "w8a8", "w8a16", found)
    seconds = found.sites["a"].seconds
    assert seconds[chosen.form] < WORTH * min(seconds[f] for f in ("fp16", "w8a16", "w8a8"))


def test_nothing_is_rounded_where_that_gains_nothing() -> None:
    same = WeightCost(seconds=dict.fromkeys(MACHINE.peaks, 1.0), rows=(7, 9))
    chosen = choose(["a"], "w8a8", "w8a16", predicted(a=same))
    assert chosen.form == "fp16" and "rounding gains less than 2%" in str(chosen.reason)


def test_a_format_that_the_machine_lacks_is_not_chosen() -> None:
    slow = WeightCost(seconds={"fp32": 4.0, "w8a8": 1.0}, rows=(1, 1))
    assert choose(["a"], "w8a8", "w4a16", predicted(a=slow)).form == "w8a8"
    unknown = WeightCost(seconds={"fp16": 4.0}, rows=(1, 1))
    assert choose(["a"], "fp8", "w8a16", predicted(a=unknown)).form == "fp8"


def site(name: str, **changes: object) -> Site:
    plain = Site(
        name=name,
        graph="full",
        role="fc1",
        op="MatMul",
        node=name,
        weight=f"{name}.weight",
        bias=None,
        input=f"{name}.input",
        output=f"{name}.output",
        weight_shape=(512, 512),
        channel_axis=-1,
    )
    return msgspec.structs.replace(plain, **changes)


def planned(*sites: Site, **changes: object) -> tuple[SiteMap, Plan]:
    entry = SitePlan(
        name="-", weight=INT8, activation=ActivationFormat(bits=8), smoothing=0.5, rounding="gptq"
    )
    entry = msgspec.structs.replace(entry, **changes)
    named = (msgspec.structs.replace(entry, name=each.name) for each in sites)
    return SiteMap(sites=sites, graphs=("full",)), Plan(sites=tuple(named))


def test_sites_that_share_an_input_stay_alike() -> None:
    a, b = site("a", input="x", shares_input_with=("b",)), site("b", input="x")
    site_map, plan = planned(a, b)
    found = fit_plan(plan, predicted(a=cost(1), b=cost(4096)), site_map, "int8")
    assert [entry.activation is None for entry in found.sites] == [False, False]
    found = fit_plan(plan, predicted(a=cost(1), b=cost(2)), site_map, "int8")
    assert [entry.activation is None for entry in found.sites] == [True, True]
    assert all(entry.rounding == "gptq" and entry.smoothing is None for entry in found.sites)
    assert check_plan(found, site_map)


def test_four_bits_need_whole_blocks() -> None:
    even, odd = site("even"), site("odd", weight_shape=(512, 500))
    site_map, plan = planned(even, odd)
    found = fit_plan(plan, predicted(even=cost(1), odd=cost(1)), site_map, "int4")
    assert [entry.weight.bits for entry in found.sites if entry.weight] == [4, 8]
    assert check_plan(found, site_map)


def test_convolutions_and_sites_without_a_quantized_input_stay_as_they_are() -> None:
    conv = site("conv", op="Conv", weight_shape=(8, 8, 3, 3), channel_axis=1)
    site_map, plan = planned(conv)
    assert fit_plan(plan, predicted(conv=cost(1)), site_map, "int8") == plan
    site_map, plan = planned(site("a"), activation=None, smoothing=None)
    assert fit_plan(plan, predicted(a=cost(4096)), site_map, "int8") == plan


def test_weight_only_recipes_take_no_target() -> None:
    with pytest.raises(RecipeError, match="plan_for chooses which inputs are quantized"):
        with_changes(QuantizeOptions(activation_bits=32), plan_for="rtx4090")


def test_a_quantization_for_a_target_says_why_in_its_plan(
    quantized_of: Callable[[str], object],
) -> None:
    workspace = quantized_of("rar").workspace  # type: ignore[attr-defined]
    outcome = arvg("quantize", workspace, "--name", "fit", "--plan-for", "rtx3090")
    assert outcome.code == 0, outcome.err
    plan = decode_json(workspace / "quantize" / "fit" / "plan.json", Plan, do="")
    fitted = [entry for entry in plan.sites if "bandwidth-bound" in (entry.reason or "")]
    # One token a step: all linears of the blocks and the head meet two rows.
    assert len(fitted) > 20 and all(e.weight and not e.activation for e in fitted)
    reason = "predicted for GeForce RTX 3090 at 1 image per batch, 2 to 4 rows: bandwidth-bound"
    assert any((entry.reason or "").startswith(reason) for entry in fitted)


def test_an_unknown_target_is_refused_before_anything_is_written(
    quantized_of: Callable[[str], object],
) -> None:
    workspace: Path = quantized_of("rar").workspace  # type: ignore[attr-defined]
    outcome = arvg("quantize", workspace, "--name", "odd", "--plan-for", "rtx9999")
    assert_refused(outcome, 6, "rtx9999")
    assert not (workspace / "quantize" / "odd").exists()


def test_a_target_where_nothing_gains_is_refused_before_anything_is_written(
    quantized_of: Callable[[str], object], tmp_path: Path
) -> None:
    workspace: Path = quantized_of("rar").workspace  # type: ignore[attr-defined]
    slow = Machine(name="slow", bandwidth=1e18, peaks={"fp32": 1e9, "w8a8": 1e9}, source="made up")
    file = tmp_path / "slow.json"
    file.write_bytes(msgspec.json.encode(slow))
    outcome = arvg("quantize", workspace, "--name", "none", "--plan-for", file)
    assert_refused(outcome, 3, "rounding gains nothing at any site on slow")
    assert not (workspace / "quantize" / "none").exists()
