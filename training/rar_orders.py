"""Train a RAR on orders of its tokens: which order a row is learned in, and its logits there.

As in the official training (github.com/bytedance/1d-tokenizer), all orders are random at first, and
the raster alone is left at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..families.rar.model import RarTransformer
from ..families.shared.transformer import causal_mask

# All orders at random until the first share of the steps, none after the second.
# The official shares are a half and three quarters, of a training a thousand times as long.
RANDOM_UNTIL = 0.25
RASTER_FROM = 0.5


def random_orders(rows: int, length: int, progress: float, generator: torch.Generator) -> Tensor:
    """Return the order in which each row's tokens are learned, int64 [rows, length].

    It is random or the raster. The share of random ones falls from 1 to 0 between two points of the
    training, whose `progress` goes from 0 to 1.
    """
    share = (RASTER_FROM - progress) / (RASTER_FROM - RANDOM_UNTIL)
    mixed = torch.rand(rows, length, generator=generator).argsort(dim=1)
    is_random = torch.rand(rows, 1, generator=generator) < share
    return torch.where(is_random, mixed, torch.arange(length))


def rar_logits(model: RarTransformer, tokens: Tensor, labels: Tensor, orders: Tensor) -> Tensor:
    """Return logits [N, L, V] of tokens [N, L] in the orders [N, L].

    The model's `forward` takes the raster alone. A token brings its own place and gets that of the
    next one; modulation is by the step.
    """
    steps = torch.arange(tokens.shape[1] + 1)
    sequence = torch.cat((model.prefix(labels), tokens.gather(1, orders)), dim=1)[:, :-1]
    prefix = steps[:2].expand(len(tokens), -1)
    places = F.embedding(torch.cat((prefix, orders + 2), dim=1)[:, :-1], model.pos_embed[0])
    targets = F.pad(F.embedding(orders + 2, model.target_aware_pos_embed[0]), (0, 0, 1, 0))
    x = F.embedding(sequence, model.token_table()) + places + targets
    condition = model.conditions(labels, steps)
    head = model.adaln_before_head(condition)
    mask = causal_mask(steps, len(steps), x.dtype)
    return model.step(x, model.modulations(condition), head, mask=mask)[0][:, 1:]
