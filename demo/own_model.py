"""Write a small model as anybody has one: ONNX files out of torch, and arrays to calibrate with.

    python -m arvg_trt.demo.own_model FOLDER

The model is the autoencoder inside `mar-mini`, convolutions with an attention, exported by
`torch.onnx.export` as it comes: arvg-trt is told nothing of its family. `encoder.onnx` makes a
latent of an image and `decoder.onnx` an image of the latent; `calibration.npz` and `held_out.npz`
hold photographs that scikit-image ships, none of them in both.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ..families.kl_vae.model import KlVae, load_kl_vae
from ..families.variants import find_model, shipped_checkpoint
from ..runtime.images import center_crop
from ..samples.images import open_source

SIZE = 64
FEEDS = {
    "calibration": "skimage:coffee,rocket,motorcycle_left,coins",
    "held_out": "skimage:astronaut,chelsea,hubble_deep_field,retina",
}


class Half(nn.Module):
    """Run the encoder or the decoder alone, which are methods of the model."""

    def __init__(self, model: KlVae, encodes: bool) -> None:
        super().__init__()
        self.model, self.encodes = model, encodes

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(x) if self.encodes else self.model.decode(x)


def write_graph(half: Half, example: Tensor, names: tuple[str, str], path: Path) -> None:
    """Export one half with a dynamic batch, without what torch says of packages not needed here."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    torch.onnx.export(
        half,
        (example,),
        path,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )


def quarters(images: str) -> NDArray[np.float32]:
    """Return four crops of each photograph, [N, 3, SIZE, SIZE] in [-1, 1]."""
    source = open_source(images, size=2 * SIZE)
    whole = np.stack([center_crop(source.load(k), 2 * SIZE) for k in range(len(source.files))])
    scaled = whole.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    corners = [(y, x) for y in (0, SIZE) for x in (0, SIZE)]
    return np.concatenate([scaled[:, :, y : y + SIZE, x : x + SIZE] for y, x in corners])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write both graphs and both files of arrays into FOLDER."""
    path = Path(shipped_checkpoint(find_model("mar-mini"))) / "vae.safetensors"
    model = load_kl_vae(load_file(path), str(path))
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in FEEDS.items():
        np.savez(folder / f"{name}.npz", image=quarters(images))
    example = torch.zeros(2, 3, SIZE, SIZE)
    with torch.no_grad():
        latent = model.encode(example)
    write_graph(Half(model, True).eval(), example, ("image", "latent"), folder / "encoder.onnx")
    write_graph(Half(model, False).eval(), latent, ("latent", "decoded"), folder / "decoder.onnx")
    click.echo(folder)


if __name__ == "__main__":
    main()
