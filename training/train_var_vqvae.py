"""Train var-mini's tokenizer: VAR's VQVAE at 32 base channels, on 64x64 pictures.

    python -m arvg_trt.training.train_var_vqvae --data DIR --output models/var-mini

DIR holds the Tiny ImageNet archive; pictures k < 450 of each class are trained on, flipped at
random, the others measured on. The loss is mean absolute plus mean squared error of the image,
and the official quantizer's loss (codebook and 0.25 of commitment, the mean over scales of the
error of the sum so far). Codes that go unused take the place of a random vector of the batch.
Weights are an exponential moving average, saved as float16.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..export.tokenizers.var_quantizer import MultiScaleQuantizer
from ..export.tokenizers.var_vqvae import HITS, VarVqvae
from ..export.tokenizers.var_vqvae_config import VarVqvaeConfig
from .loop import Run, Schedule, step_generator, write_record
from .tiny_imagenet import archive_digest, load_pictures

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
    generator = step_generator(seed, step)
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
    model = VarVqvae(CONFIG).to(device)
    groups = [{"params": list(model.parameters()), "weight_decay": 1e-4}]
    schedule = Schedule(steps, peak_lr, WARMUP)
    use = torch.zeros(CONFIG.vocab_size, device=device)
    kept = {"use": use}
    run = Run(model, groups, schedule, output / "vae_state.pt", ema_decay=EMA_DECAY, kept=kept)
    for step in run.steps():
        images = training_batch(training.images, step, seed).to(device)
        image_loss, code_loss, hits, vectors = losses(model, images)
        run.update(image_loss + code_loss, step)
        model.quantize.ema_vocab_hit_SV.lerp_(hits, 1 - HITS_DECAY)
        use += hits.sum(dim=0)
        if step % RESTART_EVERY == 0 and step < RESTART_UNTIL * steps:
            tables = (model.quantize.embedding.weight.data, run.average[CODES])
            restart_codes(tables, use, vectors, step_generator(seed, step))
            use.zero_()
        run.log(image=image_loss.item(), codes=code_loss.item())
        if run.is_measured(step):
            psnr = held_out_psnr(run.average, held_out.images, device)
            run.say(step + 1, f"held-out PSNR {psnr:.2f} dB")
    run.average[HITS] = model.quantize.ema_vocab_hit_SV
    weights = {k: v.to("cpu", torch.float16).contiguous() for k, v in run.average.items()}
    save_file(weights, output / "vae.safetensors")
    (output / "config.json").write_text(json.dumps({"patch_nums": CONFIG.patch_nums}) + "\n")
    write_record(
        output / "vae_training.json",
        schedule,
        run.seconds,
        batch=BATCH,
        seed=seed,
        device=device,
        held_out_psnr=round(held_out_psnr(run.average, held_out.images, device), 3),
        data_sha256=archive_digest(data),
    )


if __name__ == "__main__":
    main()
