"""Train cosmos-mini-di8x8: the DI8x8 architecture at 32 base channels, on 64x64 pictures.

    python -m arvg_trt.training.train_cosmos_mini --data DIR --output models/cosmos-mini-di8x8

Reads `tiny_imagenet` (k < 450 of each class) and `imagenet_samples`; nothing else is seen in
training. The loss is the mean over images of log MSE, which is mean PSNR up to a constant.
Three steps of four see 32 single pictures at 64x64, the fourth 8 mosaics at 128x128, so that group
statistics and mid-block attention do not specialise to 64 tokens. Weights are an exponential
moving average, saved as bfloat16 like the published checkpoints.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..families.cosmos.config import CosmosConfig
from ..families.cosmos.model import CosmosTokenizer
from .loop import Run, Schedule, step_generator, write_record

CONFIG = CosmosConfig(channels=32, channels_mult=(2, 3, 3), z_channels=64)
SIZE = 64
BATCH = 32
WARMUP = 300
HELD_OUT_FROM = 450
EMA_DECAY = 0.999


def load_images(data: Path) -> tuple[Tensor, dict[str, str]]:
    """Return all training images, uint8 [N, 3, 64, 64], and the sha256 of their files."""
    tiny = data / "tiny_imagenet" / "tiny_imagenet_10x500_train_64.zip"
    samples = data / "imagenet_samples" / "imagenet_samples_64.npz"
    pictures = [np.load(samples, allow_pickle=False)["images"]]
    with zipfile.ZipFile(tiny) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".JPEG") and int(Path(name).stem.split("_")[1]) < HELD_OUT_FROM:
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    pictures.append(np.asarray(image.convert("RGB"))[None])
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tiny, samples)}
    return torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2).contiguous(), digests


def sample_crops(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return images [count, 3, 64, 64] in [-1, 1], flipped, half enlarged and cropped.

    They are enlarged by up to 1.6.
    """
    index = torch.randint(len(pictures), (count,), generator=generator)
    batch = pictures[index].float() / 127.5 - 1
    rolls = torch.rand(count, 5, generator=generator).tolist()
    for i, (flip, enlarge, scale, top, left) in enumerate(rolls):
        if flip < 0.5:
            batch[i] = batch[i].flip(-1)
        if enlarge < 0.5:
            side = round(SIZE * (1 + 0.6 * scale))
            large = F.interpolate(batch[i : i + 1], size=(side, side), mode="bicubic")
            y, x = int(top * (side - SIZE + 1)), int(left * (side - SIZE + 1))
            batch[i] = large[0, :, y : y + SIZE, x : x + SIZE].clamp(-1, 1)
    return batch


def training_batch(pictures: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Return [32, 3, 64, 64], and for every fourth step 2x2 mosaics [8, 3, 128, 128]."""
    batch = sample_crops(pictures, BATCH, generator)
    if step % 4 == 3:
        rows = batch.reshape(BATCH // 4, 2, 2, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2, 5)
        batch = rows.reshape(BATCH // 4, 3, 2 * SIZE, 2 * SIZE)
    return batch.contiguous()


def reconstruct(model: CosmosTokenizer, images: Tensor) -> Tensor:
    """Reconstruct images with straight-through FSQ, in float32; convolutions in bfloat16."""
    assert model.quantizer is not None
    with torch.autocast(images.device.type, torch.bfloat16):
        latent = model.encode(images)
    codes = model.quantizer.straight_through(latent.float())
    with torch.autocast(images.device.type, torch.bfloat16):
        return model.decode(codes).float()


def log_mse(model: CosmosTokenizer, images: Tensor) -> Tensor:
    error = (reconstruct(model, images) - images).square().mean(dim=(1, 2, 3))
    return (error + 1e-4).log().mean()


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=12000, show_default=True)
@click.option("--peak-lr", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(data: Path, output: Path, steps: int, peak_lr: float, seed: int, device: str) -> None:
    """Train, resume from OUTPUT/state.pt when it is there, and write model.safetensors."""
    torch.manual_seed(seed)
    pictures, digests = load_images(data)
    output.mkdir(parents=True, exist_ok=True)
    model = CosmosTokenizer(CONFIG).to(device)
    groups = [{"params": list(model.parameters()), "weight_decay": 1e-4}]
    schedule = Schedule(steps, peak_lr, WARMUP)
    run = Run(model, groups, schedule, output / "state.pt", ema_decay=EMA_DECAY)
    for step in run.steps():
        images = training_batch(pictures, step, step_generator(seed, step)).to(device)
        loss = log_mse(model, images)
        run.update(loss, step)
        run.log(psnr=10 * math.log10(4) - 10 / math.log(10) * loss.item())
    weights = {k: v.to("cpu", torch.bfloat16).contiguous() for k, v in run.average.items()}
    save_file(weights, output / "model.safetensors")
    write_record(
        output / "training.json",
        schedule,
        run.seconds,
        batch=BATCH,
        seed=seed,
        device=device,
        data_sha256=digests,
    )


if __name__ == "__main__":
    main()
