"""The token-wise Q/DQ form against the paper's asymmetric per-token grids in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.qparams import QParams
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.qdq.per_token import TokenSite, rewrite_token_linear
from arvg_trt.quantize.token_qparams import best_grid, grid_candidates, is_one_sided, usual_reach
from arvg_trt.runtime.sessions.open import open_session

POSITIONS, INPUTS, OUTPUTS = 9, 12, 10
IDS = np.array([4, 5, 6, 2])
ROW_IDS = np.array([[4, 5, 6, 2], [0, 8, 2, 3]])
FORMS = ("all positions", "gathered", "gathered by row", "no bias", "one grid", "rank 2")
SHIFTS = {
    "symmetric": np.zeros(POSITIONS, np.int64),
    "one shift": np.full(POSITIONS, 11),
    "a shift a position": np.arange(POSITIONS) * 3 - 5,
}


def graph(bias: bool, positions: bool, rank: int, by_row: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    info = helper.make_tensor_value_info
    constants = {"w": rng.normal(0, 0.3, (INPUTS, OUTPUTS)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if bias else "y"], name="linear")]
    if bias:
        constants["b"] = rng.normal(0, 1, OUTPUTS).astype(np.float32)
        nodes.append(helper.make_node("Add", ["m", "b"], ["y"], name="add"))
    inputs = [info("x", TensorProto.FLOAT, ["n", "t", INPUTS][3 - rank :])]
    if positions:
        inputs.append(info("ids", TensorProto.INT64, ["n", "t"] if by_row else ["t"]))
    made = helper.make_graph(
        nodes,
        "case",
        inputs,
        [info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def site(bias: bool, positions: bool, rank: int) -> Site:
    return Site(
        name="block.fc",
        graph="step",
        role="fc1",
        op="MatMul",
        node="linear",
        weight="w",
        bias="b" if bias else None,
        input="x",
        output="y",
        weight_shape=(INPUTS, OUTPUTS),
        channel_axis=rank - 1,
        token_axis=1 if rank == 3 else None,
        position_input="ids" if positions else None,
    )


def simulate(
    x: np.ndarray, weight: np.ndarray, grid: QParams, bias: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """clamp(round(x / d_t) + z_t, 0, 2^b - 1), back to values, times the symmetric weight."""
    step, zero = grid.scale[ids], 2 ** (grid.bits - 1) + grid.zero_point[ids]
    if x.ndim == 3:
        step, zero = step[..., None], zero[..., None]
    codes = np.clip(np.rint(x / step) + zero, 0, 2**grid.bits - 1)
    return (codes - zero) * step @ weight.astype(np.float64).T + bias


def run(proto: onnx.ModelProto, folder, feeds: dict[str, np.ndarray], optimized: bool):  # type: ignore[no-untyped-def]
    path = folder / "g.onnx"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return open_session(path, optimized=optimized).run(feeds)["y"]


@pytest.mark.parametrize("optimized", [False, True], ids=["reference", "fast"])
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("form", FORMS)
def test_graph_equals_the_papers_simulation(  # type: ignore[no-untyped-def]
    tmp_path, form: str, kind: str, bits: int, optimized: bool
) -> None:
    rng = np.random.default_rng(2)
    bias, positions = form != "no bias", form.startswith("gathered")
    rank = 2 if form == "rank 2" else 3
    count = 1 if form in ("one grid", "rank 2") else POSITIONS
    step = 0.05 * 2.0 ** (8 - bits) * np.exp(rng.normal(0, 0.8, count))
    shift = np.clip(SHIFTS[kind][-count:], -(2 ** (bits - 1)), 2 ** (bits - 1))
    token_grid = QParams.from_shift(step, shift, bits)
    # What float32 tables mean, exactly.
    exact = token_grid.deployed()
    proto = graph(bias, positions, rank, form == "gathered by row")
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight = quantize_weight(held["w"].T, WeightFormat(bits=bits))
    model = ir.serde.deserialize_model(proto)
    node = next(n for n in model.graph if n.name == "linear")
    rewrite_token_linear(
        model.graph, node, site(bias, positions, rank), TokenSite(weight, token_grid)
    )
    ids = IDS if positions else np.arange(POSITIONS)
    ids = ROW_IDS if form == "gathered by row" else ids
    rows = np.zeros(ids.shape[-1], np.int64) if count == 1 else ids
    low = shift[rows] - 2 ** (bits - 1)
    size = (2, ids.shape[-1], INPUTS)
    points = rng.integers(-3, 2**bits + 3, size) + rng.uniform(-0.4, 0.4, size)
    x = ((points + low[..., None]) * exact.scale[rows][..., None]).astype(np.float32)
    x = x if rank == 3 else x.reshape(-1, INPUTS)
    rows = rows if rank == 3 else np.zeros(1, np.int64)
    wanted = simulate(
        x.astype(np.float64), weight.dequantize(), exact, held.get("b", np.float32(0)), rows
    )
    feeds = {"x": x, **({"ids": ids} if positions else {})}
    found = run(ir.to_proto(model), tmp_path, feeds, optimized)
    np.testing.assert_allclose(found, wanted, atol=4e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("positions", [False, True])
def test_both_sides_of_the_product_have_one_scalar_scale(positions: bool) -> None:
    model = ir.serde.deserialize_model(graph(True, positions, 3))
    node = next(n for n in model.graph if n.name == "linear")
    grid = QParams.from_shift(np.geomspace(0.01, 1, POSITIONS), SHIFTS["a shift a position"], 8)
    weight = quantize_weight(np.eye(OUTPUTS, INPUTS, dtype=np.float32), WeightFormat(bits=8))
    chosen = TokenSite(weight, grid)
    rewrite_token_linear(model.graph, node, site(True, positions, 3), chosen)
    product = next(n for n in model.graph if n.op_type == "MatMul")
    for value in product.inputs:
        dequantize = value.producer()
        assert dequantize.op_type == "DequantizeLinear"
        assert [v.const_value.size for v in dequantize.inputs[1:]] == [1, 1]
        assert not dequantize.inputs[2].const_value.numpy().any()
    assert np.median(chosen.qparams.token_scale) == pytest.approx(1)
    gathers = [n for n in model.graph if n.op_type == "Gather"]
    assert len(gathers) == (3 if positions else 0)


def stats(low: list[float], high: list[float], square: list[float]) -> TensorStats:
    return TensorStats(*(np.array(v, np.float64) for v in (low, high, square)), count=4)


def test_dead_positions_and_dead_tensors_have_steps_above_zero() -> None:
    for low, high in (([0, 0, 0], [0, 0, 0]), ([-1, 0, -2], [1, 0, 2])):
        for allow in (True, False):
            for grid in grid_candidates(stats(low, high, [1, 0, 1]), 8, allow_shift=allow):
                level = grid.token_scale
                assert (grid.scale > 0).all() and np.isfinite(grid.scale).all()
                assert np.isfinite(1 / level).all() and level.max() / level.min() < 6e4


def test_one_sided_ranges_use_every_level_and_two_sided_ones_are_symmetric() -> None:
    low, high = [-0.17] * 3, [1.0, 2.0, 4.0]
    assert is_one_sided(np.array(low), np.array(high))
    ranges = stats(low, high, [1, 4, 16])
    (grid,) = grid_candidates(ranges, 6, allow_shift=True, fractions=(1.0,))
    bottom = (-grid.zero_point - 32) * grid.scale
    assert (np.abs(bottom - low) <= grid.scale).all()
    assert (bottom + 63 * grid.scale >= np.array(high) - grid.scale).all()
    assert (63 * grid.scale < 1.4 * (np.array(high) - low)).all()
    both = grid_candidates(stats([-3, -1, -2], [2, 2, 2], [1, 1, 1]), 6, allow_shift=True)[0]
    assert not both.zero_point.any()


def grids_of(*steps: list[float]) -> list[QParams]:
    return [QParams.from_shift(np.array(s), np.full(len(s), k), 8) for k, s in enumerate(steps)]


def test_each_position_gets_the_clip_of_its_own_least_error_where_samples_are_many() -> None:
    candidates = grids_of([1.0, 2.0, 3.0], [0.5, 1.0, 1.5])
    errors = np.array([[1.0, 1.0, 1e6], [0.5, 0.5, 1.1e6]])
    grid, best = best_grid(candidates, errors, samples=10**6)
    np.testing.assert_array_equal(best, [1, 1, 0])
    np.testing.assert_array_equal(grid.scale, [0.5, 1.0, 3.0])
    np.testing.assert_array_equal(grid.zero_point, [-1, -1, 0])


def test_few_samples_of_a_position_count_less_than_what_all_positions_say() -> None:
    candidates = grids_of([1.0] * 40, [0.5] * 40)
    errors = np.ones((2, 40))
    errors[1], errors[1, 7] = 0.5, 1.1  # one position saw a value that the clip cuts
    assert not best_grid(candidates, errors, samples=10**6)[1][7]
    assert best_grid(candidates, errors, samples=1)[1].all()
    # A sink that the clip would ruin keeps its range from the first sample on.
    errors[1, 7] = 1000
    best = best_grid(candidates, errors, samples=1)[1]
    assert not best[7] and best.sum() == 39


def test_positions_without_any_error_keep_the_first_clip() -> None:
    candidates = grids_of([1.0, 1.0], [0.5, 0.5])
    assert not best_grid(candidates, np.zeros((2, 2)), samples=4)[1].any()


def test_one_position_with_massive_activations_leaves_the_others_their_levels() -> None:
    peaks = np.array([23.0] + [4.0] * 30)
    seen = stats(list(-peaks), list(peaks), [4.0] * 31)  # a root mean square of 1 each
    (grid,) = grid_candidates(seen, 8, allow_shift=True, fractions=(1.0,))
    np.testing.assert_allclose(grid.scale * 127, peaks)


def test_a_position_reaches_as_far_as_the_crest_factor_of_the_others_says() -> None:
    square = [4.0, 4.0, 16.0]  # root mean squares 1, 1, 2
    (grid,) = grid_candidates(
        stats([-1, -4, -2], [1, 3, 2], square), 8, allow_shift=True, fractions=(1.0,)
    )
    np.testing.assert_allclose(grid.scale * 127, [4, 4, 8])


@pytest.mark.parametrize(
    ("peak", "usual"), [(4.0, 4.0), (6.0, 6.0), (8.0, 8.0), (8.1, 4.0), (20.0, 4.0)]
)
def test_the_largest_crest_counts_unless_it_is_a_sinks(peak: float, usual: float) -> None:
    """Twice the 0.9 quantile, 4 here, is the border; a dead position reaches nowhere."""
    peaks = np.array([0.0, peak] + [8.0] * 10)
    seen = stats(list(-peaks), list(peaks), [0.0, 4.0] + [16.0] * 10)  # root mean squares 0, 1, 2
    np.testing.assert_allclose(usual_reach(seen, peaks), [0.0, usual] + [2 * usual] * 10)
