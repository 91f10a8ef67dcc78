"""Packed weights come back as they were; damaged ones are refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import WorkspaceError
from arvg_trt.numerics import packing
from arvg_trt.numerics.packing import (
    load_packed_weights,
    pack_bits,
    save_packed_weights,
    unpack_bits,
)
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight


def packed(path: Path) -> bytes:
    weight = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    quantized = {"fc1": quantize_weight(weight, WeightFormat(bits=4))}
    save_packed_weights(quantized, {"b": weight}, path)
    found, floats = load_packed_weights(path)
    np.testing.assert_array_equal(found["fc1"].q, quantized["fc1"].q)
    np.testing.assert_array_equal(floats["b"], weight)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"fc1.weight_q", b"fc1.weight_x"),
        (b"[4, 8]", b"[4, 9]"),
        (b"[4, 8]", b"[0, 8]"),
        (b"[4, 8]", b"[8, 4]"),
        (b"weights/v1", b"weights/v9"),
        (b"uniform", b"other.."),
    ],
)
def test_a_changed_header_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    data = packed(path)
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(WorkspaceError, match="cannot be read") as caught:
        load_packed_weights(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        load_packed_weights(path)


@given(
    st.integers(2, 8),
    st.lists(st.integers(1, 5), max_size=2),
    st.integers(1, 40),
    st.integers(1, 60),
    st.booleans(),
)
def test_a_large_weight_is_packed_in_parts_as_the_whole(
    bits: int, shape: list[int], rows: int, most: int, transposed: bool
) -> None:
    """Bits of whole arrays are eight bytes of each value."""
    n = 2 ** (bits - 1) - 1
    q = np.random.default_rng(rows).integers(-n, n, (rows, *shape), np.int8, endpoint=True)
    q = np.asfortranarray(q) if transposed else q
    text = "".join(f"{int(value) + n + 1:0{bits}b}" for value in q.ravel())
    wanted = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PACKED", most)
        found = pack_bits(q, bits)
        assert found.tobytes() == wanted
        np.testing.assert_array_equal(unpack_bits(found, bits, q.shape), q)
