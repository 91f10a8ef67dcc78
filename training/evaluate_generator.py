"""Measure whether a classifier of real images recognizes what a generator's images show.

    python -m arvg_trt.training.evaluate_generator --data DIR --workspace WS

DIR holds the Tiny ImageNet archive, WS an exported generator of its ten classes. A small network
learns the classes from images k < 450; its accuracy on the others is the yardstick for its accuracy
on generated ones. Chance is 10 %.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.generator import Generator
from .tiny_imagenet import CLASSES, flipped, load_images, moved, to_signed

BATCH = 64
PEAK_LR = 3e-3
REACH = 4


def untrained() -> nn.Sequential:
    """Return a classifier from [N, 3, 64, 64] in [-1, 1] to logits [N, 10]; 0.3 M parameters."""
    layers: list[nn.Module] = []
    widths = (3, 32, 64, 96, 128)
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, CLASSES)
    )


def train_classifier(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = untrained()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for index in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            batch = moved(flipped(to_signed(images[index]), generator), REACH, generator)
            loss = F.cross_entropy(model(batch), labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        click.echo(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}", err=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Sequential, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy on images uint8 [N, 3, 64, 64]."""
    right = 0
    for k in range(0, len(images), 200):
        found = model(to_signed(images[k : k + 200])).argmax(dim=1)
        right += int((found == labels[k : k + 200]).sum())
    return right / len(images)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--workspace", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--count", default=50, show_default=True, help="Generated images of each class.")
@click.option("--epochs", default=12, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--cfg", type=float, help="Guidance. [default: the model's]")
@click.option("--classifier", type=click.Path(path_type=Path), help="Kept there, or taken.")
def main(
    data: Path,
    workspace: Path,
    count: int,
    epochs: int,
    seed: int,
    cfg: float | None,
    classifier: Path | None,
) -> None:
    """Print the two accuracies as one JSON object."""
    training, held_out = load_images(data)
    if classifier is not None and classifier.exists():
        model = untrained()
        model.load_state_dict(torch.load(classifier, weights_only=True))
        model.eval()
    else:
        model = train_classifier(training.images, training.labels, epochs, seed)
        if classifier is not None:
            torch.save(model.state_dict(), classifier)
    labels = np.repeat(np.arange(CLASSES), count)
    made = Generator.open(workspace).generate(labels, seed=seed, cfg=cfg, batch_size=20)
    pictures = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    real = accuracy(model, held_out.images, held_out.labels)
    generated = accuracy(model, pictures, torch.from_numpy(labels))
    print(
        json.dumps(
            {
                "real": round(real, 4),
                "generated": round(generated, 4),
                "generated_over_real": round(generated / real, 4),
                "over_chance": round(generated * CLASSES, 2),
                "images": len(labels),
            }
        )
    )


if __name__ == "__main__":
    main()
