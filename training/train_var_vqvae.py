"""Train var-mini's tokenizer: VAR's VQVAE at 32 base channels, on 64x64 pictures.

    python -m arvg_trt.training.train_var_vqvae --data DIR --output models/var-mini

DIR holds the Tiny ImageNet archive; pictures k < 450 of each class are trained on, flipped at
random, the others measured on. The loss is mean absolute plus mean squared error of the image,
and the official quantizer's loss (codebook and 0.25 of commitment, the mean over scales of the
error of the sum so far). Codes that go unused take the place of a random vector of the batch.
Weights are an exponential moving average, saved as float16.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..export.tokenizers.var_quantizer import MultiScaleQuantizer
from ..export.tokenizers.var_vqvae import HITS, VarVqvae
from ..export.tokenizers.var_vqvae_config import VarVqvaeConfig
from .tiny_imagenet import ARCHIVE, load_pictures

CONFIG = VarVqvaeConfig(
    channels=32,
    channels_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    latent_channels=16,
    vocab_size=512,
    patch_nums=(1, 2, 3, 4, 5, 6, 8),
)
BATCH = 16
WARMUP = 300
COMMITMENT = 0.25
EMA_DECAY = 0.999
HITS_DECAY = 0.99
CODES = "quantize.embedding.weight"
RESTART_EVERY = 50
RESTART_UNTIL = 0.7  # of all steps; afterwards the codebook only settles
RARE = 0.03  # of the mean use


def training_batch(images: Tensor, step: int, seed: int) -> Tensor:
    """[16, 3, 64, 64] in [-1, 1], half of them flipped; of the step's number and the seed alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    index = torch.randint(len(images), (BATCH,), generator=generator)
    batch = to_signed(images[index])
    flip = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, batch.flip(-1), batch)


def to_signed(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def quantize(
    quantizer: MultiScaleQuantizer, latent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Straight-through sum of all scales, loss, hits [S, V], the vectors looked up [N*L, C]."""
    fixed = latent.detach()
    total = torch.zeros_like(fixed)
    loss = latent.new_zeros(())
    hits, vectors = [], []
    for scale in range(quantizer.last + 1):
        with torch.no_grad():
            residual = fixed - total
            codes = quantizer.codes(scale, residual)
            vectors.append(quantizer.shrink(scale, residual).flatten(0, 1))
        hits.append(torch.bincount(codes.flatten(), minlength=quantizer.config.vocab_size))
        total = total + quantizer.contribution(scale, codes)
        loss = loss + F.mse_loss(total, fixed) + COMMITMENT * F.mse_loss(total.detach(), latent)
    through = latent + (total - latent).detach()
    return through, loss / (quantizer.last + 1), torch.stack(hits).float(), torch.cat(vectors)


def losses(model: VarVqvae, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image loss, quantizer loss, hits, vectors; convolutions in bfloat16, the rest in float32."""
    with torch.autocast(images.device.type, torch.bfloat16):
        latent = model.encode(images)
    through, loss, hits, vectors = quantize(model.quantize, latent.float())
    with torch.autocast(images.device.type, torch.bfloat16):
        found = model.decode(through).float()
    return F.l1_loss(found, images) + F.mse_loss(found, images), loss, hits, vectors


def restart_codes(
    tables: tuple[Tensor, ...], use: Tensor, vectors: Tensor, generator: torch.Generator
) -> int:
    """Give rarely used codes a random vector in every table [V, C]; how many there were."""
    rare = (use < RARE * use.mean()).nonzero().flatten()
    chosen = torch.randint(len(vectors), (len(rare),), generator=generator).to(vectors.device)
    for table in tables:
        table[rare] = vectors[chosen]
    return len(rare)


def learning_rate(step: int, steps: int, peak: float) -> float:
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def held_out_psnr(weights: dict[str, Tensor], images: Tensor, device: str) -> float:
    """Mean over pictures of the PSNR of 8-bit reconstructions."""
    model = VarVqvae(CONFIG).to(device)
    model.load_state_dict(weights)
    model.eval()
    values = []
    for part in torch.split(images, 50):
        wanted = part.to(device)
        codes = model.quantize.encode(model.encode(to_signed(wanted)))
        found = model.decode(model.quantize.decode(codes)).clamp(-1, 1)
        error = ((found + 1) * 127.5).round() - wanted.float()
        values.append(10 * torch.log10(255**2 / error.square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())


def save_state(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=5000, show_default=True)
@click.option("--peak-lr", default=1.5e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    data: Path, output: Path, steps: int, peak_lr: float, seed: int, device: str, threads: int
) -> None:
    """Train, resume from OUTPUT/vae_state.pt if it is there, and write vae.safetensors.

    What no shape tells, the sides of the token maps, goes to config.json beside it.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    training, held_out = load_pictures(data)
    output.mkdir(parents=True, exist_ok=True)
    state_path = output / "vae_state.pt"
    model = VarVqvae(CONFIG).to(device)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), peak_lr, betas=(0.9, 0.95), weight_decay=1e-4)
    use = torch.zeros(CONFIG.vocab_size, device=device)
    start, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, use = state["average"], state["use"]
        start, seconds = state["step"], state["seconds"]
    sums = torch.zeros(2)
    restarted = 0
    tick = time.monotonic()
    for step in range(start, steps):
        images = training_batch(training.images, step, seed).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_lr)
        optimizer.zero_grad(set_to_none=True)
        image_loss, code_loss, hits, vectors = losses(model, images)
        (image_loss + code_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.quantize.ema_vocab_hit_SV.lerp_(hits, 1 - HITS_DECAY)
        use += hits.sum(dim=0)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if step % RESTART_EVERY == 0 and step < RESTART_UNTIL * steps:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            tables = (model.quantize.embedding.weight.data, average[CODES])
            restarted += restart_codes(tables, use, vectors, generator)
            use.zero_()
        sums += torch.tensor([image_loss.item(), code_loss.item()])
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds += time.monotonic() - tick
            tick = time.monotonic()
            done = step % 100 + 1
            click.echo(
                f"step {step + 1}/{steps}  image {sums[0] / done:.4f}  codes {sums[1] / done:.4f}  "
                f"restarted {restarted}  {seconds:.0f} s",
                err=True,
            )
            sums.zero_()
            restarted = 0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            psnr = held_out_psnr(average, held_out.images, device)
            click.echo(f"step {step + 1}/{steps}  held-out PSNR {psnr:.2f} dB", err=True)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "use": use,
                "step": step + 1,
                "seconds": seconds,
            }
            save_state(state_path, state)
    average[HITS] = model.quantize.ema_vocab_hit_SV
    weights = {k: v.to("cpu", torch.float16).contiguous() for k, v in average.items()}
    save_file(weights, output / "vae.safetensors")
    record = {
        "steps": steps,
        "peak_lr": peak_lr,
        "batch": BATCH,
        "seed": seed,
        "device": device,
        "seconds": round(seconds),
        "held_out_psnr": round(held_out_psnr(average, held_out.images, device), 3),
        "torch": torch.__version__,
        "data_sha256": {ARCHIVE: hashlib.sha256((data / ARCHIVE).read_bytes()).hexdigest()},
    }
    (output / "config.json").write_text(json.dumps({"patch_nums": CONFIG.patch_nums}) + "\n")
    (output / "vae_training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
