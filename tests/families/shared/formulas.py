"""Formulas of the models in float64, from a state_dict alone.

Of convolutional tokenizers in PyTorch, of transformers in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

State = dict[str, Tensor]
Array = NDArray[np.float64]
Arrays = Mapping[str, Array]
erf = np.vectorize(math.erf)


class HasStride(Protocol):
    @property
    def stride(self) -> int: ...


def in_double(model: nn.Module) -> State:
    return {k: v.double() for k, v in model.state_dict().items()}


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normed(state: State, name: str, x: Tensor) -> Tensor:
    """32 groups of neighbouring channels, eps 1e-6."""
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    unit = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    return unit * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def residual(state: State, name: str, x: Tensor) -> Tensor:
    """Two convolutions beside the input, which a third takes to another width."""
    h = conv(state, f"{name}.conv1", swish(normed(state, f"{name}.norm1", x)))
    h = conv(state, f"{name}.conv2", swish(normed(state, f"{name}.norm2", h)))
    shortcut = f"{name}.nin_shortcut"
    return h + (conv(state, shortcut, x) if f"{shortcut}.weight" in state else x)


def attention(state: State, name: str, x: Tensor) -> Tensor:
    """One head over all positions, scaled by all channels."""
    xn = normed(state, f"{name}.norm", x)
    q, k, v = (conv(state, f"{name}.{part}", xn).flatten(2) for part in "qkv")
    scores = torch.einsum("nci,ncj->nij", q, k) * x.shape[1] ** -0.5
    out = torch.einsum("nij,ncj->nci", scores.softmax(dim=2), v).reshape(x.shape)
    return x + conv(state, f"{name}.proj_out", out)


def halved(state: State, name: str, x: Tensor) -> Tensor:
    """A convolution of stride 2, padded behind alone."""
    padded = F.pad(x, (0, 1, 0, 1))
    return F.conv2d(padded, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def images(config: HasStride, count: int = 2) -> Tensor:
    size = 4 * config.stride
    generator = torch.Generator().manual_seed(4)
    return torch.rand(count, 3, size, size + config.stride, generator=generator) * 2 - 1


def close(found: Tensor | np.ndarray, wanted: Tensor) -> None:
    assert tuple(found.shape) == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.std()))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    gated: Array = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return gated


def norm(x: Array, state: Arrays | None = None, name: str = "") -> Array:
    """Normalize the last axis, eps 1e-6; without a state no weight and no bias."""
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return unit if state is None else unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: Arrays, name: str, x: Array) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
