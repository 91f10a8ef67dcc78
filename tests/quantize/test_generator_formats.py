"""Formats other than integers on generators: FP8, powers of two beside it, weights alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from arvg_trt.errors import RecipeError
from arvg_trt.numerics.qparams import QParams
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.qdq.per_token import TokenSite, rewrite_token_linear
from arvg_trt.quantize.token_qparams import fp8_candidates
from arvg_trt.runtime.sessions.open import fast_session

from ..calibrate.observers.test_smoothed import passes, views_of
from ..families.generators import TinyGenerator, full_logits, stepped_logits
from .qdq.test_per_token import IDS, INPUTS, POSITIONS, graph, run, site, stats
from .test_shared_graphs import quantize, sqnr


def e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest E4M3 numbers, from the definition: 3 bits of mantissa, exponents -6 to 8."""
    exponent = np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6)))
    unit = 2.0 ** (exponent - 3)
    return np.clip(np.rint(x / unit) * unit, -448, 448)


@pytest.mark.parametrize("optimized", [False, True], ids=["reference", "fast"])
@pytest.mark.parametrize("grid_name", ["fp8", "log2"])
@pytest.mark.parametrize("form", ["all positions", "gathered", "one grid", "rank 2"])
def test_fp8_graph_equals_a_float64_simulation(
    tmp_path: Path, form: str, grid_name: str, optimized: bool
) -> None:
    rng = np.random.default_rng(6)
    positions, rank = form == "gathered", 2 if form == "rank 2" else 3
    count = 1 if form in ("one grid", "rank 2") else POSITIONS
    step = 0.01 * np.exp(rng.normal(0, 0.8, count))
    token_grid = QParams.symmetric(step, 8, "fp8")
    exact = token_grid.deployed().scale
    proto = graph(True, positions, rank)
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    bits = 8 if grid_name == "fp8" else 4
    weight = quantize_weight(held["w"].T, WeightFormat(bits=bits, grid=grid_name))  # type: ignore[arg-type]
    model = ir.serde.deserialize_model(proto)
    node = next(n for n in model.graph if n.name == "linear")
    rewrite_token_linear(
        model.graph, node, site(True, positions, rank), TokenSite(weight, token_grid)
    )
    ids = IDS if positions else np.arange(POSITIONS)
    size = (2, len(ids), INPUTS)[3 - rank :]
    # Numbers of E4M3, also beyond its largest, moved by less than half of what lies between two.
    number = e4m3(rng.normal(0, 1, size) * np.exp(rng.normal(0, 3, size)))
    unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(number), 2.0**-6))) - 3)
    codes = number + rng.uniform(-0.2, 0.4, size) * unit * np.sign(number)
    codes[0, 0] = 1000.0
    steps = np.broadcast_to(exact, len(ids)) if count == 1 else exact[ids]
    steps = steps[:, None] if rank == 3 else exact
    x = (codes * steps).astype(np.float32)
    rounded = e4m3(x.astype(np.float64) / steps) * steps
    wanted = rounded @ weight.dequantize().T.astype(np.float64) + held["b"]
    feeds = {"x": x, **({"ids": ids} if positions else {})}
    found = run(ir.to_proto(model), tmp_path, feeds, optimized)
    np.testing.assert_allclose(found, wanted, atol=4e-6 * np.abs(wanted).max())
    product = next(n for n in model.graph if n.op_type == "MatMul")
    for value in product.inputs:
        dequantize = value.producer()  # type: ignore[union-attr]
        assert dequantize is not None and dequantize.inputs[1].const_value.size == 1  # type: ignore[union-attr]
        assert dequantize.inputs[0].dtype in (None, ir.DataType.FLOAT8E4M3FN)  # type: ignore[union-attr]


def test_errors_of_fp8_grids_are_those_of_e4m3(tiny_var: TinyGenerator) -> None:
    views, x = views_of(tiny_var)
    grids = {}
    for name, value in x.items():
        length = value.shape[1] if views[name].token_axis is not None else 1
        reach = np.abs(value).max() / np.linspace(200, 700, length)
        grids[name] = [QParams.symmetric(reach, 8, "fp8")]
    ones = {name: np.ones(value.shape[-1]) for name, value in x.items()}
    errors = passes(tiny_var).clip_errors(views, grids, ones)
    for name, value in x.items():
        tokens = views[name].token_axis is not None
        step = grids[name][0].scale[:, None] if tokens else grids[name][0].scale
        error = e4m3(value / step) * step - value
        wanted = np.square(error).sum(axis=(0, 2) if tokens else None)
        np.testing.assert_allclose(errors[name][2][0], np.atleast_1d(wanted), rtol=1e-3)


def test_fp8_grids_reach_at_least_what_was_seen_and_dead_ones_are_above_zero() -> None:
    ranges = stats([-3, -1, 0], [2, 2, 0], [1, 1, 0])
    for grid in fp8_candidates(ranges, (1.0, 1.5)):
        assert (grid.scale * 448 >= [3, 2, 0]).all() and (grid.scale > 0).all()
        assert not grid.zero_point.any() and grid.dtype == "fp8"
    dead = fp8_candidates(stats([0, 0], [0, 0], [0, 0]), (1.0,))[0]
    assert np.isfinite(1 / dead.token_scale).all() and (dead.scale > 0).all()


# Rounding to E4M3 costs a tensor about 31.5 dB (errors to 1/16), to powers of two 14 (to 1/3).
FP8 = {"fp8": {"quantize_method": "fp8"}}
POWERS = {"quantize_method": "per_channel_log", "integer_exponents": True, "weight_bits": 5}
FP8_LIKE = FP8 | {"powers of two": POWERS}


@pytest.mark.parametrize("name", FP8_LIKE)
def test_steps_in_fp8_compute_what_the_full_graph_does(
    tiny_var: TinyGenerator, tmp_path: Path, name: str
) -> None:
    plan, results = quantize(tiny_var, tmp_path / "q", smoothing="gps", **FP8_LIKE[name])
    full = full_logits(tiny_var, tmp_path / "q")
    assert sqnr(stepped_logits(tiny_var, tmp_path / "q"), full) > 60
    assert sqnr(full, full_logits(tiny_var, tiny_var.folder)) > (25 if name == "fp8" else 10)
    kinds = {tuple(r.activation.split()[:1]) for r in results if r.weight_sqnr_db is not None}
    assert kinds == {("FP8",)}
    assert all(e.activation.shift == 0 for e in plan.sites if e.activation)
    assert not any(
        "input_shift" in t.name for t in onnx.load(tmp_path / "q" / "step.onnx").graph.initializer
    )
    again = fast_session(tmp_path / "q" / "full.onnx").run(tiny_var.feeds(), ["logits"])["logits"]
    assert sqnr(again, full) > 60


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 40), ({"quantize_method": "blockwise", "block_size": 32}, 15)],
    ids=["w8a16", "w4a16"],
)
def test_weights_alone_leave_the_inputs_whole(
    tiny_var: TinyGenerator, tmp_path: Path, options: dict, least: float
) -> None:
    folder = tmp_path / "q"
    _, results = quantize(tiny_var, folder, activation_bits=32, **options)
    full = full_logits(tiny_var, folder)
    assert sqnr(stepped_logits(tiny_var, folder), full) > 100
    assert sqnr(full, full_logits(tiny_var, tiny_var.folder)) > least
    made = onnx.load(folder / "step.onnx")
    assert not [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
    wanted = TensorProto.INT4 if options else TensorProto.INT8
    codes = [t for t in made.graph.initializer if t.name.endswith(".weight_q")]
    assert len(codes) >= 8 and {t.data_type for t in codes} == {wanted}
    text = "INT4 per-block of 32" if options else "INT8 per-channel"
    assert {r.weight for r in results if r.weight_sqnr_db is not None} == {text}


def test_blocks_that_do_not_cover_the_inputs_are_listed_before_any_work(
    tiny_rar_graphs: TinyGenerator, tmp_path: Path
) -> None:
    options = {"quantize_method": "blockwise", "block_size": 32, "activation_bits": 32}
    with pytest.raises(RecipeError, match=r"2 sites cannot take.*fc2 \(48 input channels") as told:
        quantize(tiny_rar_graphs, tmp_path / "q", **options)
    assert "exclude" in str(told.value)
    assert not list((tmp_path / "q").iterdir())
