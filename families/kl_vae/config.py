"""Define what decides the shapes of MAR's autoencoder, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.pyramid import Pyramid


@dataclass(frozen=True, slots=True)
class KlVaeConfig(Pyramid):
    """Hold everything that decides the shapes of a KL autoencoder; KL-16 by default."""

    channels: int = 128
    channels_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
