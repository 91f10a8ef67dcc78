"""Train var-mini's transformer: VAR at depth 6 and width 128 on the tokens of its VQVAE.

    python -m arvg_trt.training.train_var --data DIR --vae models/var-mini --output models/var-mini

DIR holds the Tiny ImageNet archive. Pictures k < 450 of each class become tokens once in several
views (flipped, moved by up to four pixels); the others, unmoved, measure the teacher-forced loss.
Labels are dropped with probability 0.1, as in the official training, so that the null class is
trained for guidance. Weights are an exponential moving average, saved as float16.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
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
from .tiny_imagenet import ARCHIVE, Pictures, load_pictures
from .train_var_vqvae import CONFIG as VAE
from .train_var_vqvae import save_state, to_signed

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


def learning_rate(step: int, steps: int, peak: float) -> float:
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


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
    train(tokenizer.quantize, codes, training, measured, held_out, output, steps, peak_lr, seed)
    record = json.loads((output / "var_training.json").read_text())
    digest = hashlib.sha256((data / ARCHIVE).read_bytes()).hexdigest()
    record |= {"data_sha256": {ARCHIVE: digest}}
    (output / "var_training.json").write_text(json.dumps(record, indent=2) + "\n")


def train(
    quantizer: MultiScaleQuantizer,
    codes: Tensor,
    training: Pictures,
    measured: Tensor,
    held_out: Pictures,
    output: Path,
    steps: int,
    peak_lr: float,
    seed: int,
) -> None:
    """codes int16 [VIEWS, N, L] of `training`, measured [M, L] of `held_out`."""
    model = VarTransformer(CONFIG)
    initialize(model)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "emb" in n]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, peak_lr, betas=(0.9, 0.95))
    state_path = output / "var_state.pt"
    start, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start, seconds = state["average"], state["step"], state["seconds"]
    entropy = unigram_entropy(codes)
    click.echo(f"unigram entropy {entropy:.4f} nats", err=True)
    total, tick = 0.0, time.monotonic()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(len(training.labels), (BATCH,), generator=generator)
        view = torch.randint(len(codes), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROP_LABEL
        labels = training.labels[index].masked_fill(dropped, CLASSES)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_lr)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, quantizer, codes[view, index].long(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point() and key != "attn_bias_for_masking":
                average[key].lerp_(value, 1 - decay)
        done = step % 100 + 1
        if done == 100 or step + 1 == steps:
            seconds += time.monotonic() - tick
            tick = time.monotonic()
            click.echo(
                f"step {step + 1}/{steps}  loss {total / done:.4f}  {seconds:.0f} s", err=True
            )
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            found = held_out_loss(average, quantizer, measured, held_out.labels)
            click.echo(f"step {step + 1}/{steps}  held-out loss {found:.4f}", err=True)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
                "seconds": seconds,
            }
            save_state(state_path, state)
    weights = {
        k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in average.items()
    }
    save_file(weights, output / "var.safetensors")
    found = held_out_loss(average, quantizer, measured, held_out.labels)
    record = {
        "steps": steps,
        "peak_lr": peak_lr,
        "batch": BATCH,
        "seed": seed,
        "seconds": round(seconds),
        "held_out_loss": round(found, 4),
        "unigram_entropy": round(entropy, 4),
        "torch": torch.__version__,
    }
    (output / "var_training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
