"""Define what decides the shapes of a LlamaGen VQ tokenizer, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..base import HubFile
from ..shared.pyramid import Pyramid


@dataclass(frozen=True, slots=True)
class LlamagenVqConfig(Pyramid):
    """Hold everything that decides the shapes of a LlamaGen VQ; VQ-16 by default."""

    channels: int = 128
    channels_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    latent_channels: int = 8
    vocab_size: int = 16384


VQ_16 = LlamagenVqConfig()
# The published files, without their ending, and where they are.
VQ16_FILE = "vq_ds16_c2i"
VQ8_FILE = "vq_ds8_c2i"
HUB = "FoundationVision/LlamaGen"
# The file of VQ-16, whose size and digest were not found in public documents.
PUBLISHED_VQ16 = HubFile(HUB, f"{VQ16_FILE}.pt", license="MIT", login=False)
