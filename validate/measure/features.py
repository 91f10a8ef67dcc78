"""Compute the features of images that Frechet distances compare.

They come from the workspace's own encoder, or from a network of the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, CalibrationError, RecipeError
from ...runtime.images import to_model
from ...runtime.sessions.open import fast_session
from ...runtime.tokenizer import ImageTokenizer
from .generated_images import Features, Images
from .generator_accuracy import LATENT, NETWORK

WANTED = "give an ONNX graph from images [N, 3, H, W] to features [N, D]"
LATENT_TITLE = "mean and deviation of each latent channel, of the workspace's encoder"


def check_network(network: str | None) -> None:
    """Raises CalibrationError for a feature network that is not there."""
    if network is not None and not Path(network).is_file():
        raise CalibrationError("no such feature network", where=f"--features {network}", do=WANTED)


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
    """Open a graph from images [N, 3, H, W] to features [N, D].

    It is fed uint8 pixels if it takes uint8, else float32 in [-1, 1].

    Raises:
        RecipeError: it does not load, or does not take images of this size.
    """
    where = f"--features {path}"
    try:
        session = fast_session(path, threads)
    except BundleError as error:
        raise RecipeError(error.what, where=where, do=WANTED) from error
    ends = (len(session.inputs), len(session.outputs))
    kinds = [session.types[name] for name in session.inputs]
    if ends != (1, 1) or kinds not in (["uint8"], ["float32"]):
        raise RecipeError(
            f"has {ends[0]} inputs ({', '.join(kinds)}) and {ends[1]} outputs",
            where=where,
            do=WANTED,
        )

    def extract(images: Images) -> NDArray[Any]:
        fed: NDArray[Any] = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if kinds == ["float32"]:
            fed = np.concatenate([to_model(image) for image in images])
        (features,) = session.run({session.inputs[0]: fed}).values()
        return features

    try:
        tried = extract(np.zeros((2, image_size, image_size, 3), np.uint8))
    except BundleError as error:
        raise RecipeError(
            f"does not take images of {image_size}x{image_size}: {error.what}",
            where=where,
            do="put the resizing that it needs into the graph",
        ) from error
    if tried.ndim != 2 or len(tried) != 2:
        raise RecipeError(
            f"gives {list(tried.shape)} for 2 images, not [2, D]", where=where, do=WANTED
        )
    return Features(NETWORK, f"{path.name}, [N, {tried.shape[1]}]", extract)
