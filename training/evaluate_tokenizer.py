"""Print the PSNR of a tokenizer's round trip on 256x256 centre crops of folders of images.

python -m arvg_trt.training.evaluate_tokenizer cosmos-mini-di8x8 ../shared/data/kodak
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from ..export.checkpoint.read import read_all
from ..export.checkpoint.resolve import resolve_checkpoint
from ..families.cosmos.checkpoint import load_cosmos
from ..families.cosmos.config import CosmosConfig
from ..families.cosmos.model import CosmosTokenizer
from ..families.variants import find_model, shipped_checkpoint
from ..runtime.images import Uint8Image, center_crop, from_model, to_model
from ..samples.images import open_source
from ..validate.metrics.image import psnr

SIZE = 256


def round_trip(model: CosmosTokenizer, image: Uint8Image) -> Uint8Image:
    """Return the reconstruction of an image uint8 [H, W, 3]."""
    with torch.inference_mode():
        latent = model.encode(torch.from_numpy(to_model(image)))
        if model.quantizer is not None:
            latent = model.quantizer.codes(model.quantizer.indices(latent))
        return from_model(model.decode(latent).numpy())


@click.command()
@click.argument("model_name")
@click.argument("folders", nargs=-1, required=True)
@click.option("--checkpoint", help="Instead of the shipped weights.")
def main(model_name: str, folders: tuple[str, ...], checkpoint: str | None) -> None:
    """Print mean, least and largest PSNR for every folder."""
    entry = find_model(model_name)
    spec = checkpoint or shipped_checkpoint(entry)
    known = entry.config if isinstance(entry.config, CosmosConfig) else None
    model = load_cosmos(read_all(resolve_checkpoint(spec, entry.files)), spec, known=known)
    for folder in folders:
        source = open_source(folder)
        crops = [center_crop(source.load(k), SIZE) for k in range(len(source.files))]
        values = [psnr(crop, round_trip(model, crop)) for crop in crops]
        click.echo(
            f"{Path(folder).name}: {len(values)} images, mean {np.mean(values):.2f} dB, "
            f"min {min(values):.2f}, max {max(values):.2f}"
        )


if __name__ == "__main__":
    main()
