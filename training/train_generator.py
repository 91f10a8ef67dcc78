"""Train a mini's transformer on the tokens of its tokenizer, trained before.

    python -m arvg_trt.training.train_generator rar-mini --data DIR --output models/rar-mini

DIR holds the Tiny ImageNet archive, OUTPUT the tokenizer's weights (llamagen-mini's tokenizer is
par-mini's, and its training begins with par-mini's weights). Images k < 450 of each class
become tokens once in several views (flipped, moved by up to four pixels); the others, unmoved,
measure the teacher-forced loss. Labels are dropped with probability 0.1, as in the official
trainings, so that the null class is trained for guidance. Weights are an exponential moving
average, saved as float16.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import tokenizer_minis
from .generator_minis import MINIS, Batch, GeneratorMini
from .loop import Run, Schedule, step_generator, tell, write_record
from .tiny_imagenet import CLASSES, archive_digest, load_images, moved, to_signed

BATCH = 48
REACH = 4  # pixels that a view is moved by at most
WARMUP = 200
DROP_LABEL = 0.1
WEIGHT_DECAY = 0.05
EMA_DECAY = 0.998
TOKENIZERS = {"llamagen-mini": "par-mini"}  # the others are their generator's own


@torch.no_grad()
def tokenize(mini: GeneratorMini, tokenizer: nn.Module, images: Tensor) -> Tensor:
    """Return int16 codes [N, L], or float16 numbers [N, L, C], of uint8 [N, 3, 64, 64]."""
    parts = [mini.tokens(tokenizer, to_signed(part)) for part in torch.split(images, 100)]
    found = torch.cat(parts)
    return found.half() if found.is_floating_point() else found.short()


def widened(tokens: Tensor) -> Tensor:
    """Return tokens in the type they are computed with: int64 or float32."""
    return tokens.float() if tokens.is_floating_point() else tokens.long()


def views(images: Tensor, count: int, seed: int) -> list[Tensor]:
    """Return the images unchanged and flipped, then as often moved with their borders repeated."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for view in range(count):
        batch = images.flip(-1) if view % 2 else images
        if view >= 2:
            batch = moved(batch.float(), REACH, generator).byte()
        batches.append(batch)
    return batches


@torch.no_grad()
def held_out_loss(
    mini: GeneratorMini,
    weights: dict[str, Tensor],
    tokenizer: nn.Module,
    tokens: Tensor,
    labels: Tensor,
) -> float:
    """Return the loss at the end of the training, without dropped labels."""
    model = mini.build()
    model.load_state_dict(weights)
    model.eval()
    total, generator = 0.0, step_generator(0, 0)
    for part, of in zip(torch.split(tokens, 100), torch.split(labels, 100), strict=True):
        batch = Batch(widened(part), of, 1.0, generator)
        total += float(mini.loss(model, tokenizer, batch)) * len(part)
    return total / len(tokens)


def unigram_entropy(tokens: Tensor) -> float:
    """Return the entropy in nats of the codes of training, at all places together."""
    counts = np.bincount(tokens.flatten().numpy()).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def load_tokenizer(name: str, folder: Path) -> nn.Module:
    mini = tokenizer_minis.MINIS[name]
    model = mini.build()
    weights = load_file(folder / mini.file)
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval().requires_grad_(False)


def cached_tokens(
    mini: GeneratorMini, tokenizer: nn.Module, training: Tensor, held_out: Tensor, path: Path
) -> tuple[Tensor, Tensor]:
    """Return tokens [views, N, L] of training and [M, L] held out, cached in a file."""
    if not path.exists():
        seen = [tokenize(mini, tokenizer, view) for view in views(training, mini.views, 0)]
        found = {"training": torch.stack(seen), "held_out": tokenize(mini, tokenizer, held_out)}
        save_file(found, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    kept = load_file(path)
    return kept["training"], kept["held_out"]


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Return parameter groups: matrices decay, except tables of embeddings."""
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "emb" in n]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


@click.command()
@click.argument("name", type=click.Choice(sorted(MINIS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--peak-lr", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--float32", is_flag=True, help="For processors without bfloat16: faster there.")
def main(
    name: str,
    data: Path,
    output: Path,
    steps: int,
    peak_lr: float,
    seed: int,
    threads: int,
    float32: bool,
) -> None:
    """Train, resume from the state in OUTPUT if it is there, and write the weights.

    The tokens of all views are kept in OUTPUT too.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    mini = MINIS[name]
    training, held_out = load_images(data)
    tokenizer = load_tokenizer(TOKENIZERS.get(name, name), output)
    stem = Path(mini.file).stem
    cache = output / f"{stem}_tokens.safetensors"
    tokens, measured = cached_tokens(mini, tokenizer, training.images, held_out.images, cache)
    measures = {}
    if not tokens.is_floating_point():
        measures["unigram_entropy"] = round(unigram_entropy(tokens), 4)
        click.echo(f"unigram entropy {measures['unigram_entropy']} nats", err=True)
    model = mini.build()
    mini.initialize(model)
    schedule = Schedule(steps, peak_lr, WARMUP, floor=0.02)
    path = output / f"{stem}_state.pt"
    run = Run(model, parameter_groups(model), schedule, path, ema_decay=EMA_DECAY)
    for step in run.steps():
        generator = step_generator(seed, step)
        index = torch.randint(len(training.labels), (BATCH,), generator=generator)
        view = torch.randint(len(tokens), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROP_LABEL
        labels = training.labels[index].masked_fill(dropped, CLASSES)
        batch = Batch(widened(tokens[view, index]), labels, step / steps, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=not float32):
            step_loss = mini.loss(model, tokenizer, batch)
        run.update(step_loss, step)
        run.log(loss=step_loss.item())
        if run.is_measured(step):
            found = held_out_loss(mini, run.average, tokenizer, measured, held_out.labels)
            run.say(step + 1, f"held-out loss {found:.4f}")
    kept = run.average.items()
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in kept}
    save_file(weights, output / mini.file)
    tell(output, mini.config)
    loss = held_out_loss(mini, run.average, tokenizer, measured, held_out.labels)
    model.load_state_dict(run.average)
    whole = Batch(widened(measured), held_out.labels, 1.0, step_generator(0, 0))
    measures |= mini.measures(model.eval(), whole)
    write_record(
        output / f"{stem}_training.json",
        schedule,
        run.seconds,
        batch=BATCH,
        seed=seed,
        held_out_loss=round(loss, 4),
        **measures,
        data_sha256=archive_digest(data),
    )


if __name__ == "__main__":
    main()
