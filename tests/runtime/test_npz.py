"""Arrays of a `.npz`: read as numpy reads them, and bounded by what the file holds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arvg_trt.runtime import npz
from arvg_trt.runtime.npz import BadArrays, read_npz

KINDS = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1", "|b1", ">i4"])


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def write_zip(path: Path, data: bytes, *, compressed: bool) -> None:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x.npy", data)


@settings(max_examples=60, deadline=None)
@given(
    array=hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, min_side=0)),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_arrays_are_what_numpy_reads(
    array: np.ndarray, fortran: bool, compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, x=np.asfortranarray(array) if fortran and array.ndim else array, y=np.arange(3))
    found = read_npz(path)
    assert list(found) == ["x", "y"]
    assert found["x"].dtype == array.dtype and found["x"].shape == array.shape
    np.testing.assert_array_equal(found["x"], array)


def test_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    size = 10**8
    write_zip(tmp_path / "b.npz", header((size // 4,)) + bytes(size), compressed=True)
    with pytest.raises(BadArrays, match=r"x expands [\d,]+-fold to 100,000,\d+ bytes") as caught:
        read_npz(tmp_path / "b.npz")
    assert "numpy.savez" in str(caught.value.do)


def test_compressed_arrays_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=1000))
    monkeypatch.setattr(npz, "memory", lambda: 10_000)
    with pytest.raises(BadArrays, match="more than half of this machine's memory"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header((10**6, 10**6)), "claims float32"),
        (header((10**12, 0)), "has the shape"),
        (header((3,)) + bytes(8), "claims float32"),
        (header((2,), "|O") + bytes(16), "Python objects"),
        (b"words", "is not a .npz of arrays"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "unknown version"),
    ],
)
def test_array_that_is_not_what_it_claims_is_refused(
    data: bytes, words: str, compressed: bool, tmp_path: Path
) -> None:
    write_zip(tmp_path / "a.npz", data, compressed=compressed)
    with pytest.raises(BadArrays, match=words):
        read_npz(tmp_path / "a.npz")


def test_single_array_and_other_files_are_told_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(BadArrays, match="one array without a name"):
        read_npz(tmp_path / "a.npy")
    (tmp_path / "b.npz").write_text("words")
    with pytest.raises(BadArrays, match=r"is not a \.npz"):
        read_npz(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("notes.txt", "words")
    with pytest.raises(BadArrays, match="is no array"):
        read_npz(tmp_path / "c.npz")
