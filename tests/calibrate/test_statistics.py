from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arvg_trt.calibrate.statistics import (
    TensorStats,
    load_statistics,
    merge,
    require_channels,
    save_statistics,
)
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.sites import Site

CHANNELS = 3


def measure(rows: np.ndarray) -> TensorStats:
    """Statistics of rows [N, C], every row one element a channel."""
    wide = rows.astype(np.float64)
    return TensorStats(wide.min(axis=0), wide.max(axis=0), np.square(wide).sum(axis=0), len(rows))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 39), unique=True, max_size=8),
    st.randoms(use_true_random=False),
)
def test_merge_of_any_split_in_any_order_is_the_whole(seed: int, cuts: list[int], order) -> None:
    spread = np.random.default_rng(seed)
    rows = spread.normal(size=(40, CHANNELS)) * 10 ** spread.uniform(-6, 6, (40, 1))
    shards = [{"a": measure(part), "b": measure(-part)} for part in np.split(rows, sorted(cuts))]
    order.shuffle(shards)
    merged = merge(shards)
    for name, whole in (("a", measure(rows)), ("b", measure(-rows))):
        assert np.array_equal(merged[name].low, whole.low)
        assert np.array_equal(merged[name].high, whole.high)
        assert merged[name].count == whole.count
        np.testing.assert_allclose(merged[name].square, whole.square, rtol=1e-12)


def test_saved_statistics_load_back_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wanted = {n: measure(rng.normal(size=(9, c))) for n, c in (("x", 2), ("x:output", 5))}
    save_statistics(wanted, tmp_path / "s.safetensors")
    found = load_statistics(tmp_path / "s.safetensors")
    assert found.keys() == wanted.keys()
    for name, stats in wanted.items():
        for key in ("low", "high", "square"):
            value = getattr(found[name], key)
            assert value.dtype == np.float64
            assert np.array_equal(value, getattr(stats, key))
        assert found[name].count == stats.count


@pytest.mark.parametrize("keep", [0, 7, 40, 200])
def test_damaged_file_is_a_calibration_error_that_names_it(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "s.safetensors"
    save_statistics({"x": measure(np.ones((2, 9)))}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CalibrationError, match=r"s\.safetensors.*calibrate"):
        load_statistics(path)


def test_absent_file_is_a_calibration_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"s\.safetensors"):
        load_statistics(tmp_path / "s.safetensors")


def test_file_without_the_schema_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "s.safetensors"
    save_file({"x:low": np.zeros(1)}, path)
    with pytest.raises(CalibrationError, match="names no schema, where statistics/v1 is read"):
        load_statistics(path)


def test_file_without_an_array_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "s.safetensors"
    save_file({"x:low": np.zeros(1)}, path, metadata={"schema": "arvg-trt/statistics/v1"})
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_statistics(path)


def test_shards_of_different_models_are_refused_by_tensor_name() -> None:
    one = {"a": measure(np.ones((2, 3)))}
    with pytest.raises(CalibrationError, match="b is only in one"):
        merge([one, {**one, "b": one["a"]}])


@pytest.mark.parametrize("channels", [1, 2])
def test_shards_of_different_widths_are_refused(channels: int) -> None:
    shards = [{"a": measure(np.ones((2, c)))} for c in (3, channels)]
    with pytest.raises(CalibrationError, match="a has 3 channels"):
        merge(shards)


def write_arrays(path: Path, **changed: np.ndarray) -> None:
    """A statistics file of `a` with three channels, and other arrays in their place."""
    arrays = {"low": -np.ones(3), "high": np.ones(3), "square": np.ones(3), "count": np.array([4])}
    tensors = {f"a:{kind}": array for kind, array in (arrays | changed).items()}
    save_file(tensors, path, metadata={"schema": "arvg-trt/statistics/v1"})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"low": -np.ones(2)}, "a:high is float64 .3."),
        ({"low": -np.ones((3, 1))}, "a:low is float64 .3, 1."),
        ({"square": np.ones(3, np.float32)}, "a:square is float32"),
        ({"high": np.array([1, np.nan, 1])}, "a:high has NaN"),
        ({"count": np.array([4, 4])}, "a:count is int64 .2."),
        ({"count": np.array([4.0])}, "a:count is float64"),
        ({"count": np.array([-4])}, "below 0"),
        ({k: np.ones(0) for k in ("low", "high", "square")}, "no channels"),
    ],
)
def test_statistics_of_another_shape_are_refused(
    changed: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    write_arrays(path)
    assert load_statistics(path)["a"].count == 4
    write_arrays(path, **changed)
    with pytest.raises(CalibrationError, match=words) as caught:
        load_statistics(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("shape", "op", "fits"),
    [
        ((3, 8), "MatMul", True),
        ((8, 3), "Gemm", True),
        ((8, 4), "MatMul", False),
        ((8, 3, 1, 1), "Conv", True),
        ((3, 1, 3, 3), "Conv", True),
        ((8, 2, 1, 1), "Conv", False),
    ],
)
def test_statistics_have_the_channels_of_their_weight(
    shape: tuple[int, ...], op: str, fits: bool
) -> None:
    site = Site(
        **{"name": "a", "graph": "g", "role": "fc", "op": op, "node": "a", "weight": "w"},
        **{"bias": None, "input": "x", "output": "y", "weight_shape": shape},
    )
    statistics = {"a": TensorStats(-np.ones(3), np.ones(3), np.ones(3), 4)}
    if fits:
        require_channels(statistics, [site], "file")
        return
    with pytest.raises(CalibrationError, match="statistics of 3 channels"):
        require_channels(statistics, [site], "file")
