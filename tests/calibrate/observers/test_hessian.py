"""Streamed sums over the rows of products against float64 sums over all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers import hessian as second_moments
from arvg_trt.calibrate.observers.hessian import HessianObserver, HessianSums, Kernel, split_runs
from arvg_trt.calibrate.observers.smoothed import SmoothedInput
from arvg_trt.errors import CalibrationError, OutOfMemory
from arvg_trt.numerics.qparams import QParams
from arvg_trt.samples.files import save_sample

from ...families.tiny import silent

CHANNELS, SAMPLES = 5, 6


@pytest.fixture
def graph_of(tmp_path: Path) -> Callable[[tuple[int, ...]], tuple[Path, np.ndarray]]:
    """A graph that doubles its input, with six samples of a shape; and what it gives for all."""

    def make(shape: tuple[int, ...]) -> tuple[Path, np.ndarray]:
        kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *shape]) for n in "xy"]
        nodes = [helper.make_node("Add", ["x", "x"], ["y"], name="double")]
        graph = helper.make_graph(nodes, "g", kinds[:1], kinds[1:])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(proto, tmp_path / "g.onnx")
        x = np.random.default_rng(3).normal(0.3, 1, (SAMPLES, *shape)).astype(np.float32)
        (tmp_path / "samples").mkdir()
        for k, one in enumerate(x):
            save_sample({"x": one[None]}, tmp_path / "samples", k)
        return tmp_path, 2 * x.astype(np.float64)

    return make


def collect(folder: Path, observer: HessianObserver, batch_size: int) -> HessianSums:
    found = CalibrationRun(folder, folder / "samples", ("g",), batch_size, silent).hessian(
        {"a": observer}
    )
    return found["a"]


def check(found: HessianSums, rounded: np.ndarray, plain: np.ndarray) -> None:
    """Rows [M, K] as the grid gives them, and before."""
    square = rounded.T @ rounded
    assert found.square is not None and found.rounded is not None and found.plain is not None
    assert found.count == len(rounded)
    np.testing.assert_allclose(found.square, square, atol=1e-5 * np.abs(square).max())
    size = np.abs(rounded).sum(axis=0).max()
    np.testing.assert_allclose(found.rounded, rounded.sum(axis=0), atol=1e-5 * size)
    np.testing.assert_allclose(found.plain, plain.sum(axis=0), atol=1e-5 * size)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("strips", [1, 3, 40])
@pytest.mark.parametrize("rank", [2, 3])
def test_of_a_linear(graph_of, rank: int, strips: int, batch_size: int) -> None:  # type: ignore[no-untyped-def]
    folder, x = graph_of((CHANNELS,) if rank == 2 else (17, CHANNELS))
    observer = HessianObserver(
        "g", SmoothedInput("y", rank - 1), CHANNELS, second_moments.STRIP * strips
    )
    rows = x.reshape(-1, CHANNELS)
    if rank == 2:
        observer = replace(observer, rows=1)
    check(collect(folder, observer, batch_size), rows, rows)


def test_of_a_scaled_view_on_a_grid_a_position(graph_of) -> None:  # type: ignore[no-untyped-def]
    folder, x = graph_of((4, CHANNELS))
    rng = np.random.default_rng(4)
    scale, shift = np.exp(rng.normal(size=CHANNELS)), rng.normal(size=CHANNELS)
    grid = QParams.from_shift(np.array([0.5, 0.25, 1.0, 0.125]), np.array([3, 0, -2, 7]), 4)
    seen = x / scale - shift
    low = (-grid.zero_point - 8)[:, None]
    steps = np.clip(np.round(seen / grid.scale[:, None]), low, low + 15)
    observer = HessianObserver(
        "g", SmoothedInput("y", 2, 1, scale=scale, shift=shift), CHANNELS, 8, grid
    )
    rows = (steps * grid.scale[:, None]).reshape(-1, CHANNELS)
    check(collect(folder, observer, 2), rows, seen.reshape(-1, CHANNELS))


KERNELS = {
    "pointwise": Kernel((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "same": Kernel((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "one-sided pads, strides": Kernel((3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    "dilated": Kernel((3, 2), (1, 3), (2, 0, 1, 2), (2, 1)),
}


@pytest.mark.parametrize("strips", [1, 4])
@pytest.mark.parametrize("label", KERNELS)
def test_of_a_convolutions_patches(graph_of, label: str, strips: int) -> None:  # type: ignore[no-untyped-def]
    """Zeros are padded before the shift, and the grid takes them with the rest."""
    folder, x = graph_of((3, 10, 9))
    kernel = KERNELS[label]
    shift = np.array([0.4, -0.8, 0.1])
    grid = QParams.from_shift(np.array([0.3]), np.array([1]), 4)
    top, left, bottom, right = kernel.pads
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))) - shift[:, None, None]
    on_grid = np.clip(np.round(wide / 0.3), -7, 8) * 0.3

    def patches(values: np.ndarray) -> np.ndarray:
        unfolded = torch.nn.functional.unfold(
            torch.from_numpy(values),
            kernel.shape,
            dilation=kernel.dilations,
            stride=kernel.strides,
        )
        return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]).numpy()

    columns = 3 * int(np.prod(kernel.shape))
    rows = second_moments.STRIP * strips
    observer = HessianObserver("g", SmoothedInput("y", 1, shift=shift), columns, rows, grid, kernel)
    check(collect(folder, observer, 3), patches(on_grid), patches(wide))


def test_only_what_is_asked_for_leaves_the_session(graph_of) -> None:  # type: ignore[no-untyped-def]
    folder, _ = graph_of((7, CHANNELS))
    observer = HessianObserver("g", SmoothedInput("y", 2), CHANNELS, 7, squares=False)
    found = collect(folder, observer, 2)
    assert found.square is None and found.rounded is not None
    found = collect(folder, replace(observer, squares=True, means=False), 2)
    assert found.square is not None and found.rounded is None and found.plain is None


def test_nan_in_a_sample_is_refused(graph_of) -> None:  # type: ignore[no-untyped-def]
    folder, _ = graph_of((7, CHANNELS))
    save_sample({"x": np.full((1, 7, CHANNELS), np.nan, np.float32)}, folder / "samples", 2)
    with pytest.raises(CalibrationError, match="g makes NaN or infinity") as caught:
        collect(folder, HessianObserver("g", SmoothedInput("y", 2), CHANNELS, 7), 2)
    assert "00002" in str(caught.value.where)


def test_passes_hold_as_many_as_fit_in_their_order() -> None:
    observers = {f"s{k}": HessianObserver("g", SmoothedInput("x", 1), 100, 1) for k in range(5)}
    observers["means"] = HessianObserver("g", SmoothedInput("x", 1), 10**6, 1, squares=False)
    one = second_moments.HELD_BYTES * 100**2
    factor = second_moments.FACTOR_BYTES * 100**2
    parts = split_runs(observers, 2 * one + factor)
    assert [list(part) for part in parts] == [["s0", "s1"], ["s2", "s3"], ["s4", "means"]]
    assert len(split_runs(observers, 10**9)) == 1
    with pytest.raises(OutOfMemory, match=r"Hessian of s0 .*--max-memory"):
        split_runs(observers, one)
