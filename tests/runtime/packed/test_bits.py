"""Integers of a few bits: packed into as many bytes as they need, and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from arvg_trt.numerics.packing import pack_bits
from arvg_trt.runtime.packed import bits as packed_bits
from arvg_trt.runtime.packed.bits import pack_indices, unpack_indices


@given(data=st.data(), bits=st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_integers_are_read_back_and_lie_in_a_row_of_bits(data: st.DataObject, bits: int) -> None:
    shape = st.integers(0, 70)
    indices = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    packed = pack_indices(indices, bits)
    text = "".join(f"{int(v):0{bits}b}" for v in indices) if bits else ""
    text += "0" * (-len(text) % 8)
    assert packed == bytes(int(text[k : k + 8], 2) for k in range(0, len(text), 8))
    assert np.array_equal(unpack_indices(packed, bits, indices.size), indices)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_weights_are_packed_as_in_weights_safetensors(bits: int) -> None:
    half = 2 ** (bits - 1)
    q = np.random.default_rng(0).integers(-half, half, 101).astype(np.int8)
    codes = (q.astype(np.int16) + half).astype(np.uint8)
    assert pack_indices(codes, bits) == pack_bits(q, bits).tobytes()


@pytest.mark.parametrize("bits", [3, 4])
def test_chunks_join_without_a_gap(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = np.random.default_rng(0).integers(0, 2**bits, 1000).astype(np.uint8)
    whole = pack_indices(indices, bits)
    monkeypatch.setattr(packed_bits, "CHUNK", 16)
    assert pack_indices(indices, bits) == whole
