"""What decides the shapes of a MaskGIT-VQ tokenizer. Torch-free: models are listed without it."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.pyramid import Pyramid


@dataclass(frozen=True, slots=True)
class MaskgitVqConfig(Pyramid):
    """Everything that decides the shapes of a MaskGIT-VQ; the defaults are the published file's."""

    channels: int = 128
    channels_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    vocab_size: int = 1024
