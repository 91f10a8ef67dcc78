"""Files of arrays for a user's own graphs, and which inputs they feed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvg_trt.errors import CalibrationError
from arvg_trt.samples.arrays import noise_arrays, open_arrays
from arvg_trt.samples.inputs import check_pictures, needed_inputs, read_arrays, require_batch
from arvg_trt.workspace.manifest import Manifest


def value(name: str, dtype: str, *shape: int | str | None) -> dict[str, object]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def exported(*graphs: tuple[str, list[dict[str, object]], list[dict[str, object]]]) -> Manifest:
    described = [{"name": n, "inputs": i, "outputs": o} for n, i, o in graphs]
    return Manifest(
        stage="export", inputs={}, options={}, versions={}, results={"graphs": described}
    )


TWO = exported(
    ("first", [value("a", "float32", "n", 3)], [value("b", "float32", "n", 5)]),
    ("second", [value("b", "float32", "n", 5), value("a", "int64", "n")], []),
)


def opened(manifest: Manifest, path: Path, count: int | None = None):  # type: ignore[no-untyped-def]
    return open_arrays(manifest, feeds=str(path), images=None, size=8, count=count, seed=None)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_read_whole_and_mapped_where_they_can_be(
    tmp_path: Path, compressed: bool
) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "plain": rng.standard_normal((4, 3, 2)).astype(np.float32),
        "turned": np.asfortranarray(rng.standard_normal((4, 3))),
        "graph/ids": rng.integers(0, 9, (4, 2)),
        "flags": rng.integers(0, 2, 5).astype(bool),
        "none": np.zeros((0, 3), np.float32),
        "one": np.float32(3),
    }
    path = tmp_path / "feeds.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)  # type: ignore[arg-type]
    found = read_arrays(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)
    assert isinstance(found["plain"], np.memmap) is not compressed


def test_an_input_that_an_earlier_graph_makes_is_not_fed(tmp_path: Path) -> None:
    assert [needed.text for needed in needed_inputs(TWO)] == [
        "first/a float32 [n, 3]",
        "second/a int64 [n]",
    ]
    path = tmp_path / "feeds.npz"
    arrays = {"first/a": np.ones((2, 3), np.float32), "second/a": np.arange(2)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    samples = list(opened(TWO, path).feeds())
    assert [s["second/a"].tolist() for s in samples] == [[0], [1]]
    np.savez(path, a=arrays["first/a"])
    with pytest.raises(CalibrationError, match="a is float32, but the input is second/a int64"):
        opened(TWO, path)


def test_rows_that_a_graph_fixes_are_one_sample(tmp_path: Path) -> None:
    manifest = exported(("g", [value("x", "float32", 2, 3), value("t", "int64", "tokens")], []))
    path = tmp_path / "feeds.npz"
    x = np.arange(18, dtype=np.float32).reshape(6, 3)
    np.savez(path, x=x, t=np.arange(12).reshape(3, 4))
    feeds = opened(manifest, path)
    samples = list(feeds.feeds())
    assert [s["x"].tolist() for s in samples] == [x[k : k + 2].tolist() for k in (0, 2, 4)]
    assert [s["t"].tolist() for s in samples] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    require_batch(feeds.inputs, feeds.arrays, 1)
    with pytest.raises(CalibrationError, match=r"g/x float32 \[2, 3\] takes one sample at a time"):
        require_batch(feeds.inputs, feeds.arrays, 4)
    np.savez(path, x=x[:5], t=np.arange(12).reshape(3, 4))
    with pytest.raises(CalibrationError, match=r"x has 5 rows, but .* takes 2 at once"):
        opened(manifest, path)


def test_inputs_with_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    arrays = {"first/a": np.ones((2, 3), np.float32), "second/a": np.arange(3)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=r"number of samples: first/a 2, second/a 3"):
        opened(TWO, path)


def test_noise_is_seeded_and_fits_every_input() -> None:
    image = exported(
        ("g", [value("x", "float32", "n", 3, "h", "w"), value("t", "int64", 2, 4)], [])
    )
    samples = list(noise_arrays(image, count=3, size=16, seed=1).feeds())
    again = list(noise_arrays(image, count=3, size=16, seed=1).feeds())
    other = list(noise_arrays(image, count=3, size=16, seed=2).feeds())
    assert len(samples) == 3
    for one, same, different in zip(samples, again, other, strict=True):
        assert one["g/x"].shape == (1, 3, 16, 16) and one["g/t"].shape == (2, 4)
        assert np.array_equal(one["g/x"], same["g/x"])
        assert not np.array_equal(one["g/x"], different["g/x"])
        assert np.abs(one["g/x"]).max() <= 1 and set(one["g/t"].ravel()) <= {0, 1}


def test_a_folder_in_the_place_of_arrays_names_the_option_for_images(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is a folder") as caught:
        read_arrays(tmp_path)
    assert "--images" in str(caught.value.do)


PICTURE = exported(("net", [value("image", "float32", "n", 3, 8, 10)], []))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((4, 8, 10, 3), r"x\.transpose\(0, 3, 1, 2\)"),
        ((4, 10, 8, 3), r"x\.transpose\(0, 3, 2, 1\)"),
        ((3, 8, 10), r"x\[None\]"),
        ((4, 9, 10, 3), "along the first axis, and the others as the input has them"),
        ((4, 240), "along the first axis, and the others as the input has them"),
    ],
)
def test_arrays_of_another_shape_are_told_what_fits(
    tmp_path: Path, shape: tuple[int, ...], advice: str
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, image=np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))
    with pytest.raises(CalibrationError, match="image has shape") as caught:
        opened(PICTURE, path)
    assert re.search(advice, str(caught.value.do))
    if "transpose" in advice or "None" in advice:  # what is advised is taken
        x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        order = [int(digit) for digit in re.findall(r"\d", str(caught.value.do))]
        fitting = x.transpose(order) if order else x[None]
        np.savez(path, image=fitting)
        assert opened(PICTURE, path).count == len(fitting)


def test_bytes_are_told_both_usual_scales() -> None:
    pictures = {"image": np.linspace(0, 255, 240, dtype=np.float32).reshape(1, 3, 8, 10)}
    with pytest.raises(CalibrationError, match="values from 0 to 255") as caught:
        check_pictures(pictures, needed_inputs(PICTURE), "x.npz", None)
    do = str(caught.value.do)
    assert "x / 255 for [0, 1], x / 127.5 - 1 for [-1, 1]" in do and "--value-range 0 255" in do
