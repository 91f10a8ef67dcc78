"""The rewritten engine against the Q/DQ graph it was made from, form by form."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from arvg_trt.engines.facts import EngineRow, SiteException
from arvg_trt.engines.onnxruntime.build import (
    IN_FLOAT,
    Rewritten,
    build_engine,
    come_near,
    engine_row,
    leave_in_float,
    output_ranges,
)
from arvg_trt.engines.onnxruntime.check import (
    EXACT_DB,
    Difference,
    Expected,
    check_engine,
    differences,
)
from arvg_trt.engines.onnxruntime.float_outputs import rounding_loss
from arvg_trt.engines.onnxruntime.integers import (
    HEADROOM,
    Ranges,
    output_qparams,
    with_room_for_bias,
)
from arvg_trt.engines.onnxruntime.qlinear_conv import QLinearConvPass
from arvg_trt.errors import BuildError
from arvg_trt.graph.group_norm import ExpandGroupNormsPass
from arvg_trt.numerics.noise import masked_sqnr_db
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.runtime.sessions.open import fast_session, mapped_session, reference_session
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.files import save_sample

from ...families.tiny import TinyExport, TinyQuantized, silent
from ...graph.builders import (
    CHANNELS,
    INTEGER_CASES,
    WEIGHT_ONLY_CASES,
    ConvCase,
    float_graph,
    make_conv_case,
)


def rewritten(model: ir.Model, ranges: Ranges) -> list[str]:
    convolutions = QLinearConvPass(ranges)
    changed = convolutions(model).modified
    assert changed == bool(convolutions.rewritten)
    return list(convolutions.rewritten)


def graphs(case: ConvCase, folder: Path) -> tuple[Path, Path, list[str]]:
    """(Q/DQ graph, engine, rewritten nodes) of a case, on disk."""
    model = case.model()
    insert_qdq(model.graph, case.sites, case.chosen)
    ir.save(model, folder / "qdq.onnx")
    done = rewritten(model, case.ranges())
    ExpandGroupNormsPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    ir.save(model, folder / "engine.onnx")
    return folder / "qdq.onnx", folder / "engine.onnx", done


def output_step(case: ConvCase, name: str) -> np.ndarray:
    """The uint8 step of each output channel over its range with headroom, [1, O, 1, 1]."""
    low, high = case.ranges()[name]
    reach = np.maximum(high, 0) - np.minimum(low, 0)
    return (HEADROOM * reach / 255).reshape(1, -1, 1, 1)


def test_engine_is_the_qdq_graph_up_to_the_rounding_of_outputs(
    integer_case: ConvCase, tmp_path: Path
) -> None:
    qdq, engine, done = graphs(integer_case, tmp_path)
    assert done == list(integer_case.expected)
    kinds = [node.op_type for node in onnx.load(engine).graph.node]
    assert "Conv" not in kinds and "GroupNormalization" not in kinds
    feeds = {"x": integer_case.x}
    wanted = reference_session(qdq).run(feeds)
    for session in (fast_session, mapped_session):  # as engines are opened
        found = session(engine).run(feeds)
        assert found.keys() == wanted.keys()
        for name in integer_case.expected:
            difference = np.abs(found[f"{name}.out"] - wanted[f"{name}.out"])
            if "MatMulInteger" in kinds:
                assert difference.max() <= 2e-6 * np.abs(wanted[f"{name}.out"]).max()
            else:
                chosen = integer_case.chosen[name]
                assert chosen.quantized is not None and chosen.activation is not None
                assert chosen.activation.scale is not None
                unit = (chosen.quantized.scale * chosen.activation.scale).reshape(1, -1, 1, 1)
                # Half a step of the output, and half a unit of the INT32 sums for the bias.
                limit = 0.5 * (output_step(integer_case, name) + unit)
                assert (difference <= 1.001 * limit).all()
                assert difference.max() > 0


def with_scales(case: ConvCase, factor: np.ndarray, bias_factor: float = 1.0) -> ConvCase:
    """The case with its site's weights times `factor` [O], and with another bias."""
    chosen = case.chosen["c"]
    assert chosen.quantized is not None
    scale = (chosen.quantized.scale * factor).astype(np.float32)
    (bias,) = [t for t in case.proto.graph.initializer if t.name == "c.bias"]
    old = numpy_helper.to_array(bias).astype(np.float64)
    new = (old * bias_factor).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(new, "c.bias"))
    shape = (1, -1, 1, 1)
    product = (case.expected["c"] - old.reshape(shape)) * np.reshape(factor, shape)
    return replace(
        case,
        chosen={"c": replace(chosen, quantized=replace(chosen.quantized, scale=scale))},
        expected={"c": product + new.astype(np.float64).reshape(shape)},
    )


@pytest.mark.parametrize("shift", [0, 117])
@pytest.mark.parametrize("smallest", [1e-6, 1e-9, 1e-20])
def test_a_bias_that_dwarfs_the_weights_of_its_channel_is_kept(
    smallest: float, shift: int, tmp_path: Path
) -> None:
    """In steps of the sums it is beyond INT32, where it used to be clipped."""
    case = make_conv_case(shift=shift)
    outputs = case.expected["c"].shape[1]
    case = with_scales(case, np.geomspace(smallest, 1, outputs), bias_factor=40)
    qdq, engine, done = graphs(case, tmp_path)
    assert done == ["c"] and "QLinearConv" in {n.op_type for n in onnx.load(engine).graph.node}
    wanted = reference_session(qdq).run({"x": case.x})["c.out"]
    for session in (fast_session, mapped_session):  # as engines are opened
        found = session(engine).run({"x": case.x})["c.out"]
        assert (np.abs(found - wanted) <= 0.51 * output_step(case, "c")).all()


def test_a_convolution_whose_sums_can_leave_int32_keeps_its_qdq_form() -> None:
    case = make_conv_case()
    weight = case.chosen["c"].quantized
    assert weight is not None
    codes = np.full((weight.q.shape[0], 8000, 3, 3), 127, np.int8)
    chosen = {"c": replace(case.chosen["c"], quantized=replace(weight, q=codes), smoothing=None)}
    model = case.model()
    insert_qdq(model.graph, case.sites, chosen)
    assert rewritten(model, case.ranges()) == []


def test_a_range_is_that_of_the_convolutions_own_channels() -> None:
    case = make_conv_case()
    model = case.model()
    insert_qdq(model.graph, case.sites, case.chosen)
    short = {name: (low[1:], high[1:]) for name, (low, high) in case.ranges().items()}
    with pytest.raises(ir.passes.PreconditionError, match="output channels, and its range"):
        QLinearConvPass(short)(model)


def test_an_output_of_tiny_values_is_not_zero(tmp_path: Path) -> None:
    case = make_conv_case()
    case = with_scales(case, np.full(case.expected["c"].shape[1], 1e-12), bias_factor=1e-12)
    qdq, engine, _ = graphs(case, tmp_path)
    wanted = reference_session(qdq).run({"x": case.x})["c.out"]
    found = fast_session(engine).run({"x": case.x})["c.out"]
    assert (np.abs(found - wanted) <= 0.51 * output_step(case, "c")).all()
    assert masked_sqnr_db(wanted, found) > 35


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-30, 0), st.floats(-10, 10))
def test_sums_and_bias_never_leave_int32(seed: int, weight: float, bias: float) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (5, 7, 3, 3)).astype(np.int8)
    scale = (10.0**weight * rng.uniform(0.1, 10, 5)).astype(np.float32)
    steps = rng.normal(0, 10.0**bias, 5)
    coarse, raised = with_room_for_bias(codes, scale, steps)
    whole = np.abs(np.round(steps / raised))
    assert (whole + 255 * np.abs(coarse.astype(np.int64)).sum(axis=(1, 2, 3)) < 2**31).all()
    fits = np.abs(steps) / scale.astype(np.float64) < 2**31 - 63 * 127 * 255
    assert np.array_equal(coarse[fits], codes[fits])
    assert np.array_equal(raised[fits], scale[fits].astype(np.float64))
    error = coarse * raised.reshape(-1, 1, 1, 1) - codes * scale.astype(np.float64).reshape(
        -1, 1, 1, 1
    )
    # At most 255 * 63 of these errors meet a bias that needs 255 steps of the output or fewer.
    assert (255 * np.abs(error).sum(axis=(1, 2, 3)) <= 1e-5 * np.abs(steps)).all()


@pytest.mark.parametrize("label", [k for k in INTEGER_CASES if k.startswith(("1x1", "folded"))])
def test_pointwise_site_does_not_round_its_output(label: str, tmp_path: Path) -> None:
    _, engine, _ = graphs(INTEGER_CASES[label](), tmp_path)
    kinds = [node.op_type for node in onnx.load(engine).graph.node]
    strided = "stride" in label
    assert ("QLinearConv" in kinds) == strided and ("MatMulInteger" in kinds) != strided


@pytest.mark.parametrize("label", WEIGHT_ONLY_CASES)
def test_weight_only_site_stays_a_float_convolution(label: str, tmp_path: Path) -> None:
    case = WEIGHT_ONLY_CASES[label]()
    qdq, engine, done = graphs(case, tmp_path)
    assert done == []
    wanted = reference_session(qdq).run({"x": case.x})["c.out"]
    assert np.array_equal(reference_session(engine).run({"x": case.x})["c.out"], wanted)


def test_site_without_a_calibrated_output_keeps_its_qdq_form() -> None:
    case = INTEGER_CASES["3x3 smoothed"]()
    model = case.model()
    insert_qdq(model.graph, case.sites, case.chosen)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert rewritten(model, {}) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_nearest_resize_is_moved_behind_quantization_without_any_change(tmp_path: Path) -> None:
    """Against a Q/DQ graph whose resize has a second reader, where it must stay."""
    case = INTEGER_CASES["behind a nearest resize"]()
    _, engine, _ = graphs(case, tmp_path)
    moved = onnx.load(engine)
    order = [node.op_type for node in moved.graph.node]
    assert order.index("QuantizeLinear") < order.index("Resize") < order.index("QLinearConv")

    case.proto.graph.output.append(
        helper.make_tensor_value_info("large", onnx.TensorProto.FLOAT, [None] * 4)
    )
    case.proto.graph.node.append(helper.make_node("Relu", ["large"], ["second"], name="second"))
    case.proto.graph.output.append(
        helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [None] * 4)
    )
    (tmp_path / "other").mkdir()
    qdq, other, _ = graphs(case, tmp_path / "other")
    kept = onnx.load(other)
    order = [node.op_type for node in kept.graph.node]
    assert order.index("Resize") < order.index("QuantizeLinear") < order.index("QLinearConv")
    found = fast_session(engine).run({"x": case.x})["c.out"]
    outputs = fast_session(other).run({"x": case.x})
    assert np.array_equal(found, outputs["c.out"])
    wanted = reference_session(qdq).run({"x": case.x})
    assert np.array_equal(outputs["large"], wanted["large"])
    assert np.array_equal(outputs["second"], wanted["second"])


def test_output_grid_has_zero_on_it_and_covers_the_range() -> None:
    low, high = np.array([-1.0, 0.2, -5, 0, -2]), np.array([3.0, 4, -1, 0, 2])
    scale, zero = output_qparams(low, high)
    assert (scale > 0).all() and zero.dtype == np.uint8
    bottom, top = -zero.astype(int) * scale, (255 - zero.astype(int)) * scale
    assert (bottom <= np.minimum(low, 0) * 1.04).all() and (top >= np.maximum(high, 0) * 1.04).all()


# The whole model.


@pytest.fixture(scope="module")
def engine(
    tiny_di: TinyExport,
    tiny_int8: TinyQuantized,
    samples: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    rows = build_engine(
        tiny_int8.folder,
        tiny_di.folder,
        samples,
        tiny_int8.statistics_file,
        folder,
        progress=silent,
    )
    planned = {
        g: sum(r.graph == g and r.activation != "float" for r in tiny_int8.results)
        for g in ("encoder", "decoder")
    }
    assert {row.graph: row.int8_sites_planned for row in rows} == planned
    assert {row.graph: row.int8_sites_proved for row in rows} == planned
    assert all(row.bytes > 10_000 and not row.exceptions for row in rows)
    return folder


def test_engine_is_about_as_close_to_fp32_as_its_qdq_graph(
    tiny_di: TinyExport, tiny_int8: TinyQuantized, engine: Path, samples: Path
) -> None:
    fp32, qdq = (
        ImageTokenizer.reference(f, verify=False) for f in (tiny_di.folder, tiny_int8.folder)
    )
    fast = ImageTokenizer.open(engine, verify=False)
    image = np.concatenate([to_model(load_image(path)) for path in samples.iterdir()])
    tokens, latent = fp32.encode(image)
    assert tokens is not None
    for run, wanted in (
        (lambda t: t.encode(image)[1], latent),
        (lambda t: t.decode(tokens), fp32.decode(tokens)),
    ):
        simulated, executed = (
            float(np.square(run(t).astype(np.float64) - wanted).mean()) for t in (qdq, fast)
        )
        assert 0 < simulated < 0.01 * float(np.square(wanted).mean())
        assert executed < 4 * simulated
        assert executed != simulated


def test_every_site_has_a_calibrated_output_range(
    tiny_di: TinyExport, tiny_int8: TinyQuantized
) -> None:
    ranges = output_ranges(tiny_int8.statistics_file)
    sites = {s.name: s for s in tiny_di.sites.sites if s.weight and s.role != "patcher"}
    assert ranges.keys() == sites.keys()
    for name, (low, high) in ranges.items():
        assert low.shape == high.shape == (sites[name].weight_shape[0],)


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_broken_engine_is_refused_by_name(
    tiny_di: TinyExport,
    tiny_int8: TinyQuantized,
    engine: Path,
    samples: Path,
    tmp_path: Path,
    graph: str,
) -> None:
    broken = tmp_path / "engine"
    shutil.copytree(engine, broken)
    images = sorted(samples.glob("*.png"))[:1]
    check_engine(tiny_int8.folder, tiny_di.folder, broken, images)
    model = onnx.load(broken / f"{graph}.onnx")
    doubled = [t for t in model.graph.initializer if t.name.endswith("conv2.ort_out_scale")]
    for tensor in doubled:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    assert len(doubled) > 2
    onnx.save(model, broken / f"{graph}.onnx")
    with pytest.raises(BuildError, match=f"{graph} is .* dB from its Q/DQ graph"):
        check_engine(tiny_int8.folder, tiny_di.folder, broken, images)


SPOILT = "encoder.down.0.block.0.conv1"


def spoil(statistics: Path, target: Path, sites: Sequence[str] | None, factor: float = 100) -> None:
    """Output ranges a hundredth as wide, of some sites or all: the engine's outputs saturate."""
    held = load_file(statistics)
    for key in list(held):
        site, _, kind = key.partition(":")
        if kind in ("output:low", "output:high") and (sites is None or site in sites):
            held[key] = held[key] / factor
    save_file(held, target)


def test_a_site_whose_rounded_output_moves_the_engine_too_far_stays_in_float(
    tiny_di: TinyExport, tiny_int8: TinyQuantized, samples: Path, tmp_path: Path
) -> None:
    spoil(tiny_int8.statistics_file, tmp_path / "s.safetensors", [SPOILT])
    (tmp_path / "engine").mkdir()
    places = (tiny_int8.folder, tiny_di.folder, samples, tmp_path / "s.safetensors")
    rows = build_engine(*places, tmp_path / "engine", progress=silent)
    by_graph = {row.graph: row for row in rows}
    assert by_graph["encoder"].exceptions == (SiteException(site=SPOILT, reason=IN_FLOAT),)
    assert not by_graph["decoder"].exceptions
    planned = by_graph["encoder"].int8_sites_planned
    assert by_graph["encoder"].int8_sites_proved == planned - 1
    images = sorted(samples.glob("*.png"))
    check_engine(tiny_int8.folder, tiny_di.folder, tmp_path / "engine", images)


def test_an_engine_clearly_below_its_graph_comes_near_by_the_one_site_that_lost(
    tiny_di: TinyExport, tiny_int8: TinyQuantized, samples: Path, tmp_path: Path
) -> None:
    """The ranges of one site are too narrow, not so far that the engine would be refused."""
    images = sorted(samples.glob("*.png"))
    places = (tiny_int8.folder, tiny_di.folder, samples)

    def built(sites: Sequence[str], factor: float) -> tuple[EngineRow, Difference]:
        folder = tmp_path / f"engine{factor}{len(sites)}"
        folder.mkdir()
        spoil(tiny_int8.statistics_file, tmp_path / "s.safetensors", sites, factor)
        rows = build_engine(*places, tmp_path / "s.safetensors", folder, progress=silent)
        expected = Expected.of(tiny_int8.folder, tiny_di.folder, images, ["encoder"])
        found = differences(expected, folder)
        return rows[0], found[0]

    untouched, base = built([], 1)
    assert not untouched.exceptions and base.is_near
    row, found = built([SPOILT], 1.2)
    assert row.exceptions == (SiteException(site=SPOILT, reason=IN_FLOAT),)
    assert found.is_near and found.reached > base.lost - 3


@pytest.mark.parametrize(
    ("near_from", "held_from", "written"),
    [
        (1, 0, [1]),
        (2, 0, [1, 2]),
        (99, 0, [1, 2, 3, 0]),  # three of 17 do not suffice: speed is not given away for nothing
        (99, 4, [1, 2, 3, 0, 1, 2, 4]),  # refused, until four are in float
    ],
)
def test_few_sites_are_left_to_come_near_and_any_number_not_to_be_refused(
    tmp_path: Path, near_from: int, held_from: int, written: list[int]
) -> None:
    counts: list[int] = []

    def write(left: Collection[str]) -> EngineRow:
        counts.append(len(left))
        return engine_row("g", Rewritten((), (), ()), 1, 0.0, left)

    def measured() -> list[Difference]:
        near, held = counts[-1] >= near_from, counts[-1] >= held_from
        agreement, reached = 35.0 if held else 20.0, 38.0 if near else 36.0
        return [Difference("g", "y", lost=40.0, agreement=agreement, reached=reached)]

    come_near([f"site{k}" for k in range(17)], write, measured, tmp_path)
    assert counts == written


def test_ratios_that_are_no_numbers_are_neither_near_nor_held() -> None:
    good = Difference("g", "y", lost=40.0, agreement=39.0, reached=38.0)
    assert good.is_near and good.is_held
    for name in ("lost", "agreement"):
        odd = replace(good, **{name: math.nan})
        assert not odd.is_near and not odd.is_held
    assert not replace(good, reached=math.nan).is_near
    assert "39.0 dB from its Q/DQ graph at y" in str(good.problem(Path("engine")))


def test_sites_are_left_until_the_check_holds_and_no_longer(tmp_path: Path) -> None:
    order = [f"site{k}" for k in range(9)]
    written: list[int] = []

    def write(left: Collection[str]) -> EngineRow:
        written.append(len(left))
        return engine_row("g", Rewritten((), (), ()), 1, 0.0, left)

    problem = BuildError("too far", where="g.onnx")
    leave_in_float(order, problem, write, lambda: problem if written[-1] < 3 else None)
    assert written == [1, 2, 4]
    written.clear()
    with pytest.raises(BuildError, match="too far, with the outputs of all convolutions in float"):
        leave_in_float(order, problem, write, lambda: problem)
    assert written == [1, 2, 4, 8, 9]
    with pytest.raises(BuildError, match="too far, with"):
        leave_in_float([], problem, write, lambda: None)


@given(st.integers(1, 6), st.floats(0.01, 100), st.integers(0, 2**31))
def test_the_loss_of_a_grid_is_that_of_its_step(channels: int, width: float, seed: int) -> None:
    """Uniform values on their own range: step^2 / 12, against their squares."""
    x = np.random.default_rng(seed).uniform(-width, width, (1, channels, 40, 40))
    low, high = np.full(channels, -width), np.full(channels, width)
    step = 2 * width * 1.05 / 255
    wanted = step**2 / 12 / np.square(x).mean()
    assert rounding_loss(x, low, high) == pytest.approx(wanted, rel=0.1)
    assert rounding_loss(x, low / 100, high / 100) > 100 * wanted


def save_scaled(folder: Path, factor: float, offset: float = 0.0) -> Path:
    """y = factor x + offset as `g.onnx`."""
    folder.mkdir(exist_ok=True)
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["m"], name="mul"),
        helper.make_node("Add", ["m", "o"], ["y"], name="add"),
    ]
    held = {"f": np.float32(factor), "o": np.float32(offset)}
    onnx.save(float_graph(nodes, held, ["y"], CHANNELS), folder / "g.onnx")
    return folder


@pytest.mark.parametrize(
    ("simulated", "executed", "passes"),
    [
        (1 + 1e-3, 1 + 1e-3, True),
        (1 + 1e-3, 1 + 2e-3, True),
        (1 + 1e-3, 1 + 2e-2, False),  # 34 dB from FP32 was enough, whatever the Q/DQ graph had
        (1 + 1e-1, 1 + 4e-1, False),
        (1, 1 + 1e-7, True),
        (1, 1 + 1e-3, False),
        (1, math.nan, False),
        (1, math.inf, False),
        (0, 0, True),
        (0, 1e-30, False),
    ],
)
def test_the_engine_is_compared_with_its_qdq_graph_however_close_that_is_to_fp32(
    simulated: float, executed: float, passes: bool, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, CHANNELS, 3, 3)).astype(np.float32)
    sample = save_sample({"x": x}, tmp_path, 0)
    export = save_scaled(tmp_path / "export", 1.0 if simulated else 0.0)
    source = save_scaled(tmp_path / "source", simulated)
    engine = save_scaled(tmp_path / "engine", executed)
    if passes:
        check_engine(source, export, engine, [sample], ["g"])
        return
    with pytest.raises(BuildError, match="dB from its Q/DQ graph at y"):
        check_engine(source, export, engine, [sample], ["g"])


def test_a_mask_is_compared_by_its_place() -> None:
    a = np.array([1.0, -np.inf, 2.0])
    assert masked_sqnr_db(a, a) == math.inf > EXACT_DB
    assert masked_sqnr_db(a, np.array([1.0, -np.inf, 1.0])) == pytest.approx(10 * math.log10(5))
    for other in (
        [-np.inf, 1.0, 2.0],
        [1.0, np.inf, 2.0],
        [1.0, np.nan, 2.0],
        [np.nan, -np.inf, 2],
    ):
        assert math.isnan(masked_sqnr_db(a, np.array(other)))
