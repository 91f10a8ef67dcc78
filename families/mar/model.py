"""Define the MAR transformers (Li et al. 2024): continuous tokens, generated in any order.

Parameter names are the official ones, so a published ``state_dict`` loads with ``strict=True``. The
encoder sees the class and the known tokens, the decoder in addition a mask token at the place of
each unknown one; its output conditions the denoiser. The dropout of the training is left out.

Attention here has no mask, so the order of a sequence changes nothing. Sequences are: the buffer,
the known tokens in the order in which they came, the unknown ones; no row is ever put back into
raster order. `position_ids` [rows, n] say where in the raster each token is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.transformer import FeedForward, attend, split_qkv
from .config import MarConfig
from .denoiser import DiffusionLoss


class MarAttention(nn.Module):
    """Attend from all positions to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return what positions from `start` on see of [rows, n, C], [rows, n - start, C]."""
        q, k, v = split_qkv(self.qkv(x), self.heads)
        q = q[:, :, start:]
        return self.proj(attend(q * (1 / math.sqrt(q.shape[-1])), k, v))  # type: ignore[no-any-return]


class MarBlock(nn.Module):
    """Compute x + attn(LN1(x)), then x + mlp(LN2(x)), [rows, n, C]."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = MarAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden, "none")

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return the positions from `start` on."""
        x = x[:, start:] + self.attn(self.norm1(x), start)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MarTransformer(nn.Module):
    """Compute the denoiser's condition of each unknown token, from class and known tokens.

    Rows under guidance: the conditional ones, then the unconditional ones of the null class
    `num_classes`.
    """

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        self.config = config
        width, eps, length = config.width, config.norm_eps, config.length
        self.class_emb = nn.Embedding(config.num_classes, width)
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj = nn.Linear(config.latent_channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=eps)
        positions = config.buffer + length
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, positions, width))
        self.encoder_blocks = nn.ModuleList(
            MarBlock(width, config.heads, config.hidden, eps) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=eps)
        inner, heads, hidden = config.decoder_width, config.decoder_heads, config.decoder_hidden
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.empty(1, 1, inner))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, positions, inner))
        self.decoder_blocks = nn.ModuleList(
            MarBlock(inner, heads, hidden, eps) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(inner, eps=eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, length, inner))
        self.diffloss = DiffusionLoss(config)
        for parameter in (self.class_emb.weight, *self.parameters(recurse=False)):
            nn.init.normal_(parameter, std=0.02)

    def class_table(self) -> Tensor:
        """Return the class embeddings [classes + 1, C]; the last is the null class."""
        return torch.cat((self.class_emb.weight, self.fake_latent))

    def encoder_table(self) -> Tensor:
        """Return what each row of the encoder gets added, [buffer + L, C]."""
        return self.encoder_pos_embed_learned[0]

    def mask_table(self) -> Tensor:
        """Return the decoder's rows of unknown tokens, [L, D]."""
        return self.mask_token[0] + self.decoder_pos_embed_learned[0, self.config.buffer :]

    def encode(self, labels: Tensor, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return the encoder's rows [rows, b + N, C] of class and N known tokens.

        `labels` are [rows], `tokens` [rows, N, c], their `position_ids` [rows, N]. The first rows,
        of the buffer, are the class; N may be 0.
        """
        buffer, table = self.config.buffer, self.encoder_table()
        classes = F.embedding(labels, self.class_table()).unsqueeze(1) + table[:buffer]
        known = self.z_proj(tokens) + F.embedding(position_ids, table[buffer:])
        x = self.z_proj_ln(torch.cat((classes, known), dim=1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(self, encoded: Tensor, position_ids: Tensor) -> Tensor:
        """Return z [rows, L - N, D] of the unknown tokens, from the rows of `encode`.

        `position_ids` [rows, L] are of all tokens, known ones first. D is the decoder's width. The
        last block computes unknown tokens alone. The diffusion's position is not yet added;
        `with_position` adds it.
        """
        buffer, table = self.config.buffer, self.decoder_pos_embed_learned[0]
        known = encoded.shape[1] - buffer
        places = F.embedding(position_ids[:, :known], table[buffer:])
        classes = table[:buffer].expand(encoded.shape[0], -1, -1)
        x = self.decoder_embed(encoded) + torch.cat((classes, places), dim=1)
        unknown = F.embedding(position_ids[:, known:], self.mask_table())
        x = torch.cat((x, unknown), dim=1)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x, encoded.shape[1])
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def with_position(self, z: Tensor, position_ids: Tensor) -> Tensor:
        """Return z [rows, n, C] of tokens at [rows, n] with the diffusion's position."""
        return z + F.embedding(position_ids, self.diffusion_pos_embed_learned[0])

    def forward(self, labels: Tensor, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return the denoiser's condition of all unknown tokens, [rows, L - N, D].

        labels int64 [rows]; tokens [rows, N, c], N < L; position_ids int64 [rows, L], a
        permutation of the raster, those of the known tokens first.
        """
        known = tokens.shape[1]
        encoded = self.encode(labels, tokens, position_ids[:, :known])
        z = self.decode(encoded, position_ids)
        return self.with_position(z, position_ids[:, known:])
