"""Train var-mini's transformer: VAR at depth 6 and width 128 on the tokens of its VQVAE.

    python -m arvg_trt.training.train_var --data DIR --vae models/var-mini --output models/var-mini

DIR holds the Tiny ImageNet archive. Pictures k < 450 of each class become tokens once in several
views (flipped, moved by up to four pixels); the others, unmoved, measure the teacher-forced loss.
Labels are dropped with probability 0.1, as in the official training, so that the null class is
trained for guidance. Weights are an exponential moving average, saved as float16.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..export.generators.var import VarTransformer
from ..export.generators.var_config import VarConfig
from ..export.tokenizers.var_quantizer import MultiScaleQuantizer
from ..export.tokenizers.var_vqvae import VarVqvae, load_var_vqvae
from .loop import Run, Schedule, step_generator, write_record
from .tiny_imagenet import Pictures, archive_digest, load_pictures
from .train_var_vqvae import CONFIG as VAE
from .train_var_vqvae import to_signed

CLASSES = 10
CONFIG = VarConfig(
    depth=6,
    width=128,
    heads=4,
    patch_nums=VAE.patch_nums,
    num_classes=CLASSES,
    vocab_size=VAE.vocab_size,
    latent_channels=VAE.latent_channels,
)
BATCH = 48
VIEWS = 6
REACH = 4  # pixels that a view is moved by at most
WARMUP = 200
DROP_LABEL = 0.1
EMA_DECAY = 0.998


@torch.no_grad()
def tokenize(vae: VarVqvae, images: Tensor) -> Tensor:
    """uint8 [N, 3, 64, 64] -> int16 codes [N, L]."""
    parts = [
        vae.quantize.encode(vae.encode(to_signed(images[k : k + 100])))
        for k in range(0, len(images), 100)
    ]
    return torch.cat(parts).short()


def views(images: Tensor, seed: int) -> list[Tensor]:
    """The images as they are and flipped, then as often moved with their borders repeated."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for view in range(VIEWS):
        seen = images.flip(-1) if view % 2 else images
        if view >= 2:
            padded = F.pad(seen.float(), (REACH,) * 4, mode="replicate").byte()
            top, left = torch.randint(0, 2 * REACH + 1, (2,), generator=generator).tolist()
            seen = padded[:, :, top : top + 64, left : left + 64]
        found.append(seen)
    return found


@torch.no_grad()
def initialize(model: VarTransformer) -> None:
    """The official initialisation: a small head, residual outputs by depth, gates nearly shut.

    Gates are less shut than officially (1e-5): a small model has few steps to open them.
    """
    gates = 2 * model.config.width
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.endswith("weight") and "emb" not in name:
            torch.nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        if name == "head.weight":
            parameter.mul_(0.02)
        elif name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
            parameter.div_(math.sqrt(2 * model.config.depth))
        elif name.startswith("blocks.") and name.endswith("ada_lin.1.weight"):
            parameter[:gates].mul_(0.1)
        elif name.startswith("blocks.") and name.endswith("ada_lin.1.bias"):
            parameter[:gates].fill_(0.1)


def loss_of(
    model: VarTransformer, quantizer: MultiScaleQuantizer, codes: Tensor, labels: Tensor
) -> Tensor:
    """Mean cross-entropy in nats over all tokens of all scales."""
    with torch.no_grad():
        features = quantizer.features(codes)
    logits = model(labels, features)
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


@torch.no_grad()
def held_out_loss(
    weights: dict[str, Tensor], quantizer: MultiScaleQuantizer, codes: Tensor, labels: Tensor
) -> float:
    model = VarTransformer(CONFIG)
    model.load_state_dict(weights)
    model.eval()
    total = 0.0
    for k in range(0, len(codes), 100):
        part = codes[k : k + 100].long()
        total += float(loss_of(model, quantizer, part, labels[k : k + 100])) * len(part)
    return total / len(codes)


def unigram_entropy(codes: Tensor) -> float:
    """Entropy in nats of the tokens of training, all scales together."""
    counts = np.bincount(codes.flatten().numpy(), minlength=CONFIG.vocab_size).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--vae", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--peak-lr", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(
    data: Path, vae: Path, output: Path, steps: int, peak_lr: float, seed: int, threads: int
) -> None:
    """Train, resume from OUTPUT/var_state.pt if it is there, and write var.safetensors.

    The tokens of all views are kept in OUTPUT/var_codes.safetensors.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    training, held_out = load_pictures(data)
    tokenizer = load_var_vqvae(load_file(vae / "vae.safetensors"), str(vae), VAE.patch_nums)
    tokenizer.eval()
    output.mkdir(parents=True, exist_ok=True)
    cache = output / "var_codes.safetensors"
    if not cache.exists():
        seen = [tokenize(tokenizer, view) for view in views(training.images, seed)]
        found = {"training": torch.stack(seen), "held_out": tokenize(tokenizer, held_out.images)}
        save_file(found, cache.with_suffix(".tmp"))
        cache.with_suffix(".tmp").replace(cache)
    codes, measured = (load_file(cache)[name] for name in ("training", "held_out"))
    schedule = Schedule(steps, peak_lr, WARMUP, floor=0.02)
    run = train(tokenizer.quantize, codes, training, measured, held_out, output, schedule, seed)
    weights = {
        k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in run.average.items()
    }
    save_file(weights, output / "var.safetensors")
    loss = held_out_loss(run.average, tokenizer.quantize, measured, held_out.labels)
    write_record(
        output / "var_training.json",
        schedule,
        run.seconds,
        batch=BATCH,
        seed=seed,
        held_out_loss=round(loss, 4),
        unigram_entropy=round(unigram_entropy(codes), 4),
        data_sha256=archive_digest(data),
    )


def train(
    quantizer: MultiScaleQuantizer,
    codes: Tensor,
    training: Pictures,
    measured: Tensor,
    held_out: Pictures,
    output: Path,
    schedule: Schedule,
    seed: int,
) -> Run:
    """codes int16 [VIEWS, N, L] of `training`, measured [M, L] of `held_out`."""
    model = VarTransformer(CONFIG)
    initialize(model)
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "emb" in n]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    run = Run(model, groups, schedule, output / "var_state.pt", ema_decay=EMA_DECAY)
    click.echo(f"unigram entropy {unigram_entropy(codes):.4f} nats", err=True)
    for step in run.steps():
        generator = step_generator(seed, step)
        index = torch.randint(len(training.labels), (BATCH,), generator=generator)
        view = torch.randint(len(codes), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROP_LABEL
        labels = training.labels[index].masked_fill(dropped, CLASSES)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, quantizer, codes[view, index].long(), labels)
        run.update(loss, step)
        run.log(loss=loss.item())
        if run.is_measured(step):
            found = held_out_loss(run.average, quantizer, measured, held_out.labels)
            run.say(step + 1, f"held-out loss {found:.4f}")
    return run


if __name__ == "__main__":
    main()
