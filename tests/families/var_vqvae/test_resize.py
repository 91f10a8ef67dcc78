"""The resize matrices against PyTorch's own resizes and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.families.var_vqvae.config import PATCH_NUMS_256, PATCH_NUMS_512
from arvg_trt.families.var_vqvae.resize import area_matrix, bicubic_matrix, plane_matrix

PUBLISHED = sorted({(p, n[-1]) for n in (PATCH_NUMS_256, PATCH_NUMS_512) for p in n})


@pytest.mark.parametrize(("small", "large"), [*PUBLISHED, (5, 8), (3, 7), (7, 64)])
def test_matrices_are_pytorchs_resizes_in_float64(small: int, large: int) -> None:
    generator = torch.Generator().manual_seed(small)
    whole = torch.randn(2, 3, large, large, dtype=torch.float64, generator=generator)
    little = torch.randn(2, 3, small, small, dtype=torch.float64, generator=generator)
    down, up = area_matrix(large, small), bicubic_matrix(small, large)
    for matrix, x, wanted in (
        (down, whole, F.interpolate(whole, size=(small, small), mode="area")),
        (up, little, F.interpolate(little, size=(large, large), mode="bicubic")),
    ):
        m = torch.from_numpy(matrix)
        torch.testing.assert_close(m @ x @ m.T, wanted, atol=1e-13, rtol=0)
        flat = x.float().flatten(2) @ plane_matrix(matrix)
        torch.testing.assert_close(
            flat, wanted.float().flatten(2), atol=2e-6, rtol=0, check_dtype=True
        )


@given(size=st.integers(1, 40), target=st.integers(1, 40))
def test_a_constant_map_stays_constant(size: int, target: int) -> None:
    for matrix in (area_matrix(size, target), bicubic_matrix(size, target)):
        assert matrix.shape == (target, size)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@given(size=st.integers(1, 40))
def test_a_resize_to_the_same_size_changes_nothing(size: int) -> None:
    assert np.array_equal(area_matrix(size, size), np.eye(size))
    assert np.array_equal(bicubic_matrix(size, size), np.eye(size))


def test_windows_overlap_where_the_side_is_not_a_divisor() -> None:
    covered = (area_matrix(16, 3) > 0).sum(axis=0)
    assert covered.tolist() == [1] * 5 + [2] + [1] * 4 + [2] + [1] * 5
    assert (area_matrix(16, 4) > 0).sum() == 16


def test_the_cubic_kernel_is_not_catmull_roms() -> None:
    at_a_quarter = bicubic_matrix(8, 16)[9]  # its centre is at 4.25 of the small map
    a, d = -0.75, 0.25
    assert at_a_quarter[4] == pytest.approx((a + 2) * d**3 - (a + 3) * d**2 + 1, abs=1e-15)
    assert bicubic_matrix(5, 15)[1].tolist() == [1, 0, 0, 0, 0]  # centres that coincide
