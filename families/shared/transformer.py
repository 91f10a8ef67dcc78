"""Define transformer blocks that the generator families share.

Attention is an explicit MatMul, Softmax, MatMul: what engines fuse, and what a fused operator of
a later opset would hide from them. Token sequences are [rows, n, C], heads [rows, H, n, d].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]

NORM_FLOOR = 1e-12


class HasModules(Protocol):
    """A module, whatever else is asked of it."""

    def modules(self) -> Iterator[nn.Module]: ...


Model = TypeVar("Model", bound=HasModules)


def joined_heads(qkv: Tensor, heads: int) -> Tensor:
    """Return heads [3, rows, H, n, d] of [rows, n, 3C], in the order q, k, v.

    Features are head-major inside q, k and v.
    """
    rows, n, features = qkv.shape
    return qkv.reshape(rows, n, 3, heads, features // (3 * heads)).permute(2, 0, 3, 1, 4)


def split_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v as heads, of [rows, n, 3C] as `joined_heads` takes it."""
    q, k, v = joined_heads(qkv, heads).chunk(3, dim=0)  # a single Split; unbind becomes slices
    return q.squeeze(0), k.squeeze(0), v.squeeze(0)


def unit_length(x: Tensor) -> Tensor:
    """Return x / max(|x|, 1e-12) over the last axis; the floor needs float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(NORM_FLOOR)


def extend(past: KeyValue | None, key: Tensor, value: Tensor) -> KeyValue:
    """Return keys and values of all tokens so far, [rows, H, P + n, d]."""
    if past is None:
        return key, value
    return torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T + mask) v with the heads joined, [rows, n, C]; q is already scaled."""
    scores = q @ k.transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    rows, heads, n, d = q.shape
    joined = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
    return joined.reshape(rows, n, heads * d)


class CachedAttention(nn.Module):
    """Attend over a cache.

    Keys and values are rounded to `cache_type`, also in the step that makes them; None: not at all.
    """

    cache_type: torch.dtype | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """Attend over all tokens so far; return also their keys and values."""
        kept = self.cache_type or q.dtype
        keys, values = extend(past, k.to(kept), v.to(kept))
        return attend(q, keys.to(q.dtype), values.to(q.dtype), mask), (keys, values)


def set_cache_type(model: Model, kind: torch.dtype | None) -> Model:
    """Set what the model's attentions round keys and values to."""
    for module in model.modules():
        if isinstance(module, CachedAttention):
            module.cache_type = kind
    return model


def causal_mask(position_ids: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """Return the mask [n, total]: 0 where a token sees another, else -inf.

    Tokens are at `position_ids` [n]. A token sees itself and what is before it.
    """
    visible = torch.arange(total, device=position_ids.device) <= position_ids.unsqueeze(1)
    return torch.where(visible, 0.0, -torch.inf).to(dtype)


def modulated_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Return LN(x) * gain + shift, where the affine comes from the condition (adaLN).

    `gain` is 1 + scale. x [rows, n, C]; gain and shift [rows, 1, C], or [rows, n, C].
    """
    return F.layer_norm(x, x.shape[-1:], eps=eps) * gain + shift


def ones_of(chunks: Sequence[float], like: Tensor) -> Tensor:
    """Return [chunks, 1], to be added to rows [..., chunks, C]."""
    return torch.tensor(chunks, dtype=like.dtype, device=like.device).unsqueeze(1)


def spread_ones(chunks: Sequence[float], like: Tensor) -> Tensor:
    """Return [F], to be added to rows [..., F] of as many chunks, one behind the other."""
    return ones_of(chunks, like).expand(-1, like.shape[-1] // len(chunks)).reshape(-1)


def with_bias(linear: nn.Linear, bias: Tensor) -> nn.Linear:
    """Return a linear with the same weight, not a copy, and another bias."""
    changed = nn.Linear(linear.in_features, linear.out_features, device="meta")
    changed.weight = linear.weight
    changed.bias = nn.Parameter(bias, requires_grad=False)
    return changed


def with_ones(linear: nn.Linear, chunks: Sequence[float]) -> nn.Linear:
    """Return a modulation linear that gives gains, 1 + scale, instead of scales."""
    return with_bias(linear, linear.bias + spread_ones(chunks, linear.bias))


class FeedForward(nn.Module):
    """Compute fc2(gelu(fc1(x))); `approximate` is "tanh" or "none" (erf)."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]
