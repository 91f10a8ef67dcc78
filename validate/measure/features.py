"""Compute the features of images that Frechet distances compare.

They come from the workspace's own encoder, or from a network of the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.images import to_model
from ...runtime.tokenizer import ImageTokenizer
from ..quality.open import POOL, open_feature_network
from .generated_images import Features, Images
from .generator_accuracy import LATENT, NETWORK

LATENT_TITLE = "mean and deviation of each latent channel, of the workspace's encoder"


def open_features(
    export: Path, network: str | None, image_size: int, threads: int
) -> list[Features]:
    """Open the encoder's features, and those of the user's `network`.

    Raises:
        RecipeError: the network does not load, or does not take images of this size.
    """
    found = [latent_features(export, threads)]
    if network is not None:
        found.append(network_features(Path(network), image_size, threads))
    return found


def latent_features(export: Path, threads: int) -> Features:
    """Return features [B, 2C]: mean and deviation over positions of a latent of C channels."""
    tokenizer = ImageTokenizer.open(export, device="cpu", threads=threads)

    def extract(images: Images) -> NDArray[Any]:
        latents = [tokenizer.encode(to_model(image))[1].astype(np.float64) for image in images]
        latent = np.concatenate(latents)
        return np.concatenate([latent.mean(axis=(2, 3)), latent.std(axis=(2, 3))], axis=1)

    return Features(LATENT, LATENT_TITLE, extract)


def network_features(path: Path, image_size: int, threads: int) -> Features:
    """Open a graph from images [N, 3, H, W] to features [N, D]; of several outputs, `pool`.

    Raises:
        RecipeError: it does not load, or does not take images of this size.
    """
    network = open_feature_network(path, image_size, threads)
    return Features(NETWORK, network.title, lambda images: network.extract(images)[POOL])
