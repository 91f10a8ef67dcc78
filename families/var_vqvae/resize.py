"""Compute PyTorch's area and bicubic resizes as constant matrices, in float64.

No exporter writes them in a form that engines run well, and both are linear, the same on every
channel: with flattened maps a resize is one product with a constant matrix.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Matrix = NDArray[np.float64]
CUBIC_A = -0.75  # PyTorch's, where Catmull-Rom has -0.5


def area_matrix(size: int, target: int) -> Matrix:
    """Return the matrix [target, size] of an area resize.

    Row i averages floor(i*size/target) ... ceil((i+1)*size/target) - 1.
    """
    matrix = np.zeros((target, size))
    for row in range(target):
        first, end = row * size // target, -(-(row + 1) * size // target)
        matrix[row, first:end] = 1 / (end - first)
    return matrix


def bicubic_matrix(size: int, target: int) -> Matrix:
    """Return the matrix [target, size] of a bicubic resize.

    It has half-pixel centres, four taps, a repeated border and no antialiasing.
    """
    matrix = np.zeros((target, size))
    for row in range(target):
        position = (row + 0.5) * size / target - 0.5
        left = math.floor(position)
        for tap in range(left - 1, left + 3):
            column = min(max(tap, 0), size - 1)
            matrix[row, column] += cubic_weight(abs(position - tap))
    return matrix


def cubic_weight(distance: float) -> float:
    """Return the value of Keys' kernel (IEEE TASSP 29(6), 1981) with a = -0.75."""
    a, d = CUBIC_A, distance
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


def plane_matrix(matrix: Matrix) -> Tensor:
    """Return the matrix [size**2, target**2] of both axes, float32, for flattened maps.

    x.flatten(2) @ plane_matrix(m) is m @ x @ m.T, flattened.
    """
    both = np.kron(matrix, matrix).T
    return torch.from_numpy(np.ascontiguousarray(both.astype(np.float32)))


class Resize(nn.Module):
    """Resize flattened maps [..., size**2] to [..., target**2], by the matrix of one axis."""

    matrix: Tensor

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        # A constant, not a weight: no checkpoint has it.
        self.register_buffer("matrix", plane_matrix(matrix), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix
