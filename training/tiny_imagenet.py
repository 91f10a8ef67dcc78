"""Load the ten Tiny ImageNet classes that the class-conditional minis are trained on."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .loop import step_generator

CLASSES = 10
SIDE = 64
ARCHIVE = "tiny_imagenet_10x500_train_64.zip"
HELD_OUT_FROM = 450


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Hold images uint8 [N, 3, 64, 64] and labels int64 [N] in 0 ... 9."""

    images: Tensor
    labels: Tensor


def load_images(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return (training, held out): images k < 450 of each class, and the others.

    `folder` holds the archive, whose files are `<label>_<name>/<wnid>_<k>.JPEG`.
    """
    parts: tuple[list[tuple[np.ndarray, int]], ...] = ([], [])
    with zipfile.ZipFile(folder / ARCHIVE) as archive:
        for name in sorted(archive.namelist()):
            path = Path(name)
            if path.suffix != ".JPEG":
                continue
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = np.asarray(image.convert("RGB"))
            held_out = int(path.stem.split("_")[1]) >= HELD_OUT_FROM
            parts[held_out].append((pixels, int(path.parent.name.split("_")[0])))
    training, held_out_part = (
        LabelledImages(
            torch.from_numpy(np.stack([p for p, _ in part])).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([label for _, label in part]),
        )
        for part in parts
    )
    return training, held_out_part


def archive_digest(folder: Path) -> dict[str, str]:
    """Return the sha256 of the archive, by its name."""
    return {ARCHIVE: hashlib.sha256((folder / ARCHIVE).read_bytes()).hexdigest()}


def to_signed(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a batch with half of its images flipped."""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, images.flip(-1), images)


def moved(images: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Return a float batch [N, 3, 64, 64] moved by up to `limit` pixels, its borders repeated."""
    padded = F.pad(images, (limit,) * 4, mode="replicate")
    top, left = torch.randint(0, 2 * limit + 1, (2,), generator=generator).tolist()
    return padded[:, :, top : top + SIDE, left : left + SIDE]


def training_batch(
    data: LabelledImages, step: int, seed: int, size: int, most_shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Return images [size, 3, 64, 64] in [-1, 1] with labels, half of them flipped.

    They are moved by up to `most_shift` pixels. The step's number and the seed alone decide the
    batch.
    """
    generator = step_generator(seed, step)
    index = torch.randint(len(data.labels), (size,), generator=generator)
    images = flipped(to_signed(data.images[index]), generator)
    if most_shift:
        images = moved(images, most_shift, generator)
    return images, data.labels[index]
