"""The MAR transformers (Li et al. 2024): continuous tokens, any of them next, in any order.

Parameter names are the official ones, so a published ``state_dict`` loads with ``strict=True``.
The encoder sees the class and the known tokens, the decoder in addition a mask token at the place
of each unknown one; what it says of those conditions the denoiser. The dropout of the training is
left out.

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
    """Self-attention, all positions with all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """[rows, n, C] -> what the positions from `start` on see of all, [rows, n - start, C]."""
        q, k, v = split_qkv(self.qkv(x), self.heads)
        q = q[:, :, start:]
        return self.proj(attend(q * (1 / math.sqrt(q.shape[-1])), k, v))  # type: ignore[no-any-return]


class MarBlock(nn.Module):
    """x + attn(LN1(x)), then x + mlp(LN2(x)), [rows, n, C]."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = MarAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden, "none")

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Of the positions from `start` on."""
        x = x[:, start:] + self.attn(self.norm1(x), start)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MarTransformer(nn.Module):
    """The class and the known tokens -> what the denoiser is told of each unknown one.

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
        places = config.buffer + length
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, places, width))
        self.encoder_blocks = nn.ModuleList(
            MarBlock(width, config.heads, config.hidden, eps) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=eps)
        inner, heads, hidden = config.decoder_width, config.decoder_heads, config.decoder_hidden
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.empty(1, 1, inner))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, places, inner))
        self.decoder_blocks = nn.ModuleList(
            MarBlock(inner, heads, hidden, eps) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(inner, eps=eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, length, inner))
        self.diffloss = DiffusionLoss(config)
        for parameter in (self.class_emb.weight, *self.parameters(recurse=False)):
            nn.init.normal_(parameter, std=0.02)

    def class_table(self) -> Tensor:
        """[classes + 1, C]; the last is the null class."""
        return torch.cat((self.class_emb.weight, self.fake_latent))

    def encoder_table(self) -> Tensor:
        """[buffer + L, C]: what each row of the encoder gets added for its place."""
        return self.encoder_pos_embed_learned[0]

    def mask_table(self) -> Tensor:
        """[L, D]: the decoder's row of an unknown token."""
        return self.mask_token[0] + self.decoder_pos_embed_learned[0, self.config.buffer :]

    def encode(self, labels: Tensor, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """labels [rows], N known tokens [rows, N, c], where they are [rows, N] -> [rows, b + N, C].

        The first rows, of the buffer, are the class; N may be 0.
        """
        buffer, table = self.config.buffer, self.encoder_table()
        classes = F.embedding(labels, self.class_table()).unsqueeze(1) + table[:buffer]
        known = self.z_proj(tokens) + F.embedding(position_ids, table[buffer:])
        x = self.z_proj_ln(torch.cat((classes, known), dim=1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(self, encoded: Tensor, position_ids: Tensor) -> Tensor:
        """Rows of `encode`, where all tokens are [rows, L], known ones first -> z [rows, L - N, D].

        D is the decoder's width. Of the unknown tokens, which are all that the last block computes.
        The diffusion's position is not yet added: `place` does so.
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

    def place(self, z: Tensor, position_ids: Tensor) -> Tensor:
        """z [rows, n, C] of tokens at [rows, n], with the diffusion's own position added."""
        return z + F.embedding(position_ids, self.diffusion_pos_embed_learned[0])

    def forward(self, labels: Tensor, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """What the denoiser is told of all unknown tokens, [rows, L - N, D].

        labels int64 [rows]; tokens [rows, N, c], N < L; position_ids int64 [rows, L], a
        permutation of the raster, those of the known tokens first.
        """
        known = tokens.shape[1]
        encoded = self.encode(labels, tokens, position_ids[:, :known])
        z = self.decode(encoded, position_ids)
        return self.place(z, position_ids[:, known:])
