from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.quantize.plan import check_plan, make_plan, with_float_decoder
from arvg_trt.recipe.quantize import QuantizeOptions


def site(name: str, graph: str, **changes: object) -> Site:
    plain = Site(
        name=name,
        graph=graph,
        role="conv",
        op="Conv",
        node=name,
        weight=f"{name}.weight",
        bias=None,
        input="x",
        output="y",
        weight_shape=(8, 8, 3, 3),
    )
    return msgspec.structs.replace(plain, **changes)


SITES = SiteMap(
    sites=(
        site("encoder.patcher", "encoder", role="patcher", excluded="fixed"),
        site("encoder.mid.conv1", "encoder"),
        site("encoder.mid.bmm_qk", "encoder", role="bmm_qk", weight=None, excluded="attention"),
        site("decoder.up.conv1", "decoder"),
        site("decoder.up.conv2", "decoder"),
    )
)


def named(plan: Plan) -> dict[str, SitePlan]:
    return {entry.name: entry for entry in plan.sites}


def test_plan_has_every_site_in_order_with_a_reason_where_it_stays_float() -> None:
    plan = make_plan(SITES, QuantizeOptions(encoder_bits=6, activation_bits=7, smoothing=0.3))
    assert [entry.name for entry in plan.sites] == [s.name for s in SITES.sites]
    entries = named(plan)
    assert entries["encoder.patcher"] == SitePlan(name="encoder.patcher", reason="fixed")
    chosen = entries["encoder.mid.conv1"]
    assert chosen.weight == WeightFormat(bits=6)
    assert chosen.activation == ActivationFormat(bits=7) and chosen.smoothing == 0.3
    assert named(plan)["decoder.up.conv1"].weight == WeightFormat(bits=8)


WITH_DECODER = SiteMap(
    sites=(
        site("blocks.0.fc1", "full", op="MatMul", role="fc1", weight_shape=(8, 8)),
        site("decoder.up.conv1", "decoder"),
        site("decoder.mid.q", "decoder", role="q"),
        site("decoder.mid.bmm_qk", "decoder", role="bmm_qk", weight=None, excluded="attention"),
    ),
    graphs=("full", "decoder"),
)


def decoder_plan(**options: object) -> dict[str, SitePlan]:
    return named(make_plan(WITH_DECODER, QuantizeOptions(**options), decoder="decoder"))


def test_a_generators_decoder_has_bits_of_its_own_and_inputs_of_eight() -> None:
    plan = decoder_plan(weight_bits=6, activation_bits=6, decoder_bits=4)
    assert plan["blocks.0.fc1"].weight == WeightFormat(bits=6)
    assert plan["blocks.0.fc1"].activation == ActivationFormat(bits=6)
    assert plan["decoder.up.conv1"].weight == WeightFormat(bits=4)
    assert plan["decoder.up.conv1"].activation == ActivationFormat(bits=8)
    assert plan["decoder.mid.q"].activation is None
    assert plan["decoder.mid.bmm_qk"] == SitePlan(name="decoder.mid.bmm_qk", reason="attention")


@pytest.mark.parametrize("options", [{}, {"weight_bits": 8}, {"decoder_bits": 32}])
def test_a_recipe_that_says_nothing_of_a_decoder_leaves_it_in_float(
    options: dict[str, object],
) -> None:
    plan = decoder_plan(**options)
    assert plan["blocks.0.fc1"].weight == WeightFormat(bits=8)
    assert plan["decoder.up.conv1"] == SitePlan(name="decoder.up.conv1", reason="decoder_bits = 32")


def test_beside_float_inputs_a_decoder_has_weights_alone() -> None:
    plan = decoder_plan(activation_bits=32, decoder_bits=8)
    assert plan["decoder.up.conv1"].weight == WeightFormat(bits=8)
    assert plan["decoder.up.conv1"].activation is None


def test_a_quantized_attention_leaves_that_of_the_decoder_in_float() -> None:
    product = site("blocks.0.bmm_qk", "full", role="bmm_qk", weight=None, excluded="attention")
    sites = msgspec.structs.replace(WITH_DECODER, sites=(*WITH_DECODER.sites, product))
    options = QuantizeOptions(attention="int8", decoder_bits=8)
    plan = named(make_plan(sites, options, decoder="decoder"))
    assert plan["blocks.0.bmm_qk"].other is not None
    assert plan["decoder.mid.bmm_qk"].other is None
    with pytest.raises(RecipeError, match="this model has none to quantize"):
        make_plan(WITH_DECODER, options, decoder="decoder")


def test_a_plan_that_names_no_site_of_the_decoder_leaves_it_in_float() -> None:
    older = Plan(sites=(SitePlan(name="blocks.0.fc1", weight=WeightFormat(bits=8)),))
    entries = check_plan(with_float_decoder(older, WITH_DECODER, "decoder"), WITH_DECODER)
    assert [name for name, entry in entries.items() if entry.weight] == ["blocks.0.fc1"]
    partly = Plan(sites=(*older.sites, SitePlan(name="decoder.up.conv1")))
    with pytest.raises(RecipeError, match="has no entry"):
        check_plan(with_float_decoder(partly, WITH_DECODER, "decoder"), WITH_DECODER)


def test_half_left_in_high_precision_says_so() -> None:
    entries = named(make_plan(SITES, QuantizeOptions(encoder_bits=32)))
    assert entries["encoder.mid.conv1"].weight is None
    assert entries["encoder.mid.conv1"].reason == "encoder_bits = 32"


MODULATED = SiteMap(
    sites=(
        site("blocks.0.ada_lin", "full", role="adaln", op="MatMul", weight_shape=(8, 48)),
        site("blocks.0.fc1", "full", role="fc1", op="MatMul", weight_shape=(8, 32)),
    )
)


def test_modulation_with_bits_of_its_own_keeps_float_inputs() -> None:
    options = QuantizeOptions(weight_bits=6, activation_bits=6, rounding="gptq")
    same = named(make_plan(MODULATED, options))
    assert same["blocks.0.ada_lin"].activation == same["blocks.0.fc1"].activation
    own = named(make_plan(MODULATED, msgspec.structs.replace(options, adaln_bits=8)))
    modulation = own["blocks.0.ada_lin"]
    assert modulation.weight == WeightFormat(bits=8) and modulation.rounding == "gptq"
    assert modulation.activation is None and modulation.smoothing is None
    assert "high precision" in str(modulation.reason)
    assert own["blocks.0.fc1"] == same["blocks.0.fc1"]
    float_options = msgspec.structs.replace(options, adaln_bits=32)
    left = named(make_plan(MODULATED, float_options))["blocks.0.ada_lin"]
    assert left == SitePlan(name="blocks.0.ada_lin", reason="adaln_bits = 32")
    check_plan(make_plan(MODULATED, float_options), MODULATED)


@pytest.mark.parametrize("method", ["fp8", "blockwise", "per_channel_log"])
def test_modulation_with_bits_of_its_own_is_per_channel(method: str) -> None:
    bits = 8 if method == "fp8" else 32
    with pytest.raises(ValueError, match="adaln_bits goes with per_channel"):
        QuantizeOptions(quantize_method=method, activation_bits=bits, adaln_bits=8)
    QuantizeOptions(quantize_method=method, activation_bits=bits, adaln_bits=32)
    with pytest.raises(ValueError, match="adaln_bits must be 2 to 8, or 32"):
        QuantizeOptions(adaln_bits=9)


def test_a_graph_that_is_called_like_an_option_has_the_usual_bits() -> None:
    odd = SiteMap(sites=(site("a", "activation"), site("b", "adaln")))
    options = QuantizeOptions(activation_bits=6)
    assert {e.weight for e in make_plan(odd, options).sites} == {WeightFormat(bits=8)}


ATTENTION = SiteMap(sites=(*SITES.sites, site("encoder.mid.q", "encoder", role="q")))


def test_attention_projections_keep_float_inputs_unless_asked() -> None:
    entry = named(make_plan(ATTENTION, QuantizeOptions()))["encoder.mid.q"]
    assert entry.weight == WeightFormat(bits=8)
    assert entry.activation is None and "softmax" in str(entry.reason)
    for options in (QuantizeOptions(attention_inputs=True), QuantizeOptions(quantize_method="fp8")):
        entry = named(make_plan(ATTENTION, options))["encoder.mid.q"]
        assert entry.activation is not None and entry.reason is None
    weight_only = QuantizeOptions(activation_bits=32)
    assert named(make_plan(ATTENTION, weight_only))["encoder.mid.q"].reason is None


def test_smoothing_is_searched_by_default_and_zero_turns_it_off() -> None:
    name = "decoder.up.conv1"
    assert named(make_plan(SITES, QuantizeOptions()))[name].smoothing == "search"
    assert named(make_plan(SITES, QuantizeOptions(smoothing=0)))[name].smoothing is None


@pytest.mark.parametrize("changes", [{"shift": 3}, {"grid": "fp8"}])
def test_centered_activation_has_neither_shift_nor_fp8(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"center|shift"):
        ActivationFormat(bits=8, centered=True, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "grid", "granularity"),
    [
        ("per_tensor", "uniform", "per_tensor"),
        ("log_quantization", "log", "per_tensor"),
        ("per_channel_log", "log", "per_channel"),
        ("per_channel", "uniform", "per_channel"),
    ],
)
def test_method_decides_grid_and_granularity(method: str, grid: str, granularity: str) -> None:
    options = QuantizeOptions(decoder_bits=4, quantize_method=method, activation_bits=32)
    entry = named(make_plan(SITES, options))["decoder.up.conv1"]
    assert entry.weight == WeightFormat(bits=4, grid=grid, granularity=granularity)
    assert entry.activation is None and entry.smoothing is None


def test_excluded_pattern_keeps_the_sites_it_matches() -> None:
    entries = named(make_plan(SITES, QuantizeOptions(exclude=("decoder.*1",))))
    assert entries["decoder.up.conv1"].reason == "excluded by --exclude or the recipe"
    assert entries["decoder.up.conv2"].weight is not None


def test_exclude_pattern_without_a_match_names_the_nearest_sites() -> None:
    with pytest.raises(RecipeError, match=r"'decoder\.up\.conv3'.*nearest:.*decoder\.up\.conv1"):
        make_plan(SITES, QuantizeOptions(exclude=("decoder.up.conv3",)))


@pytest.mark.parametrize(
    "options",
    [QuantizeOptions(encoder_bits=32, decoder_bits=32), QuantizeOptions(exclude=("*",))],
)
def test_plan_that_quantizes_nothing_is_an_error(options: QuantizeOptions) -> None:
    with pytest.raises(RecipeError, match="0 sites"):
        make_plan(SITES, options)


def test_made_plan_passes_its_own_check() -> None:
    plan = make_plan(SITES, QuantizeOptions())
    assert check_plan(plan, SITES) == named(plan)


def edited(name: str, **changes: object) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        sites = [msgspec.structs.replace(e, **changes) if e.name == name else e for e in plan.sites]
        return Plan(sites=tuple(sites))

    return change


INT8, INT8_INPUT = WeightFormat(bits=8), ActivationFormat(bits=8)
BLOCKS = WeightFormat(bits=4, granularity="per_block", block=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: Plan(sites=p.sites[:-1]), "decoder.up.conv2 has no entry"),
        (lambda p: Plan(sites=(*p.sites, SitePlan(name="typo"))), "typo is not a site"),
        (lambda p: Plan(sites=(*p.sites, p.sites[1])), "encoder.mid.conv1"),
        (edited("encoder.patcher", weight=INT8), "encoder.patcher .* no weight"),
        (edited("encoder.mid.bmm_qk", weight=INT8), "encoder.mid.bmm_qk .* no weight"),
        (edited("decoder.up.conv1", weight=None), "decoder.up.conv1 quantizes its input"),
        (
            edited("decoder.up.conv1", weight=WeightFormat(bits=4, grid="log")),
            "decoder.up.conv1 quantizes its input",
        ),
        (
            edited("decoder.up.conv1", activation=ActivationFormat(bits=8, grid="fp8")),
            "decoder.up.conv1 quantizes its input",
        ),
        (
            edited("decoder.up.conv1", weight=BLOCKS, activation=None),
            "decoder.up.conv1: blocks of 4 bits are for linears",
        ),
        (
            edited("decoder.up.conv1", activation=ActivationFormat(bits=8, scale=0.1, shift=200)),
            "decoder.up.conv1 .* shift",
        ),
        (
            edited("decoder.up.conv1", activation=ActivationFormat(bits=4, scale=0.1, shift=-8)),
            "decoder.up.conv1 .* shift",
        ),
    ],
)
def test_hand_edited_plan_error_names_the_entry(
    change: Callable[[Plan], Plan], message: str
) -> None:
    plan = change(make_plan(SITES, QuantizeOptions()))
    with pytest.raises(RecipeError, match=message) as caught:
        check_plan(plan, SITES)
    assert caught.value.where == "plan.json"


@pytest.mark.parametrize(("bits", "shift"), [(8, 128), (8, -127), (4, 8), (4, -7)])
def test_shift_that_keeps_zero_on_the_grid_is_accepted(bits: int, shift: int) -> None:
    activation = ActivationFormat(bits=bits, scale=0.1, shift=shift)
    plan = edited("decoder.up.conv1", activation=activation)(make_plan(SITES, QuantizeOptions()))
    assert check_plan(plan, SITES)["decoder.up.conv1"].activation == activation


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (WeightFormat, {"bits": 9}),
        (WeightFormat, {"bits": 1}),
        (WeightFormat, {"bits": 4, "grid": "fp8"}),
        (WeightFormat, {"bits": 6, "grid": "log2"}),
        (WeightFormat, {"bits": 8, "granularity": "per_block", "block": 64}),
        (WeightFormat, {"bits": 4, "granularity": "per_block", "block": 48}),
        (WeightFormat, {"bits": 4, "granularity": "per_block", "block": 64, "grid": "log"}),
        (WeightFormat, {"bits": 4, "granularity": "per_block"}),
        (WeightFormat, {"bits": 4, "block": 64}),
        (ActivationFormat, {"bits": 1}),
        (ActivationFormat, {"bits": 8, "grid": "fp8", "shift": 1}),
        (ActivationFormat, {"bits": 8, "scale": 0.0}),
        (ActivationFormat, {"bits": 8, "scale": float("nan")}),
        (ActivationFormat, {"bits": 8, "scale": 1e30}),
        (ActivationFormat, {"bits": 8, "scale": 1e-300}),
        (SitePlan, {"name": "fc1", "smoothing": -0.5}),
    ],
)
def test_format_that_cannot_be_is_refused_when_it_is_made(kind: type, values: dict) -> None:
    with pytest.raises(ValueError, match=r"bits|shift|positive|block|smoothing"):
        kind(**values)


def linear(name: str, role: str) -> Site:
    return site(name, "full", role=role, op="MatMul", token_axis=1, positions=5)


PRODUCTS = [
    site(f"bmm_{side}", "full", role=f"bmm_{side}", op="MatMul", weight=None, excluded="fused")
    for side in ("qk", "pv")
]
GENERATOR = SiteMap(
    sites=(linear("blocks.0.fc1", "fc1"), *PRODUCTS, linear("head", "head")), graphs=("full",)
)


def test_a_site_that_is_named_has_one_scale_beside_others_with_one_a_position() -> None:
    entries = named(make_plan(GENERATOR, QuantizeOptions(per_tensor=("head",))))
    granularities = {name: e.activation.granularity for name, e in entries.items() if e.activation}
    assert granularities == {"blocks.0.fc1": "per_position", "head": "per_tensor"}


def test_a_per_tensor_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"per_tensor pattern 'haed' matches no site .*head"):
        make_plan(GENERATOR, QuantizeOptions(per_tensor=("haed",)))


@pytest.mark.parametrize(("given", "bits"), [(None, 8), (6, 6)])
def test_attention_products_have_bits_of_their_own(given: int | None, bits: int) -> None:
    plan = make_plan(GENERATOR, QuantizeOptions(attention="int8", attention_bits=given))
    product = named(plan)["bmm_pv"]
    assert product.activation == product.other == ActivationFormat(bits=bits)


@pytest.mark.parametrize(
    "options", [{"attention_bits": 6}, {"attention_bits": 9, "attention": "int8"}]
)
def test_attention_bits_without_int8_or_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="attention_bits"):
        QuantizeOptions(**options)


def test_inputs_stay_float_where_the_recipe_says_so() -> None:
    options = QuantizeOptions(weight_bits=8, float_inputs=("decoder.*",))
    entries = named(make_plan(SITES, options))
    for name in ("decoder.up.conv1", "decoder.up.conv2"):
        assert entries[name].weight is not None and entries[name].activation is None
        assert "stays in high precision, as the recipe says" in (entries[name].reason or "")
    assert entries["encoder.mid.conv1"].activation is not None
    with pytest.raises(RecipeError, match="float_inputs pattern 'nothing' matches no site"):
        make_plan(SITES, QuantizeOptions(float_inputs=("nothing",)))
