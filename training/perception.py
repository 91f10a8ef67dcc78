"""Define a loss of features: what a small classifier sees in an image, as LPIPS measures it.

64 tokens do not hold an image's pixels. The absolute error alone spends them on smooth colours;
this loss keeps what tells the classes apart. The network is trained first, on the images that the
tokenizer is trained on; it is not the classifier that measures generated images.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loop import Run, Schedule
from .tiny_imagenet import CLASSES, LabelledImages, training_batch

WIDTHS = (3, 32, 64, 128)
BATCH = 64
STEPS = 600
WARMUP = 100
PEAK_LR = 2e-3
NORM_FLOOR = 1e-6


class Perception(nn.Module):
    """Compute features of [N, 3, 64, 64] in [-1, 1] at 1/2, 1/4 and 1/8 of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.SiLU(),
            )
            for before, after in itertools.pairwise(WIDTHS)
        )
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def features(self, image: Tensor) -> list[Tensor]:
        found = [image]
        for level in self.levels:
            found.append(level(found[-1]))
        return found[1:]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, 10]."""
        return self.head(self.features(image)[-1].mean(dim=(2, 3)))  # type: ignore[no-any-return]


def unit(x: Tensor) -> Tensor:
    """Return vectors of unit length along the channels, [N, C, H, W]."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(NORM_FLOOR)  # type: ignore[no-any-return]


def difference(perception: Perception, image: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared distance of unit feature vectors, over levels and places."""
    with torch.no_grad():
        goals = perception.features(wanted)
    pairs = zip(perception.features(image), goals, strict=True)
    distances = [(unit(a) - unit(b)).square().sum(dim=1).mean() for a, b in pairs]
    return torch.stack(distances).mean()


def train_perception(training: LabelledImages, path: Path, seed: int) -> Perception:
    """Return the network in eval mode, its weights fixed, trained unless `path` exists."""
    torch.manual_seed(seed)
    model = Perception()
    if not path.exists():
        groups = [{"params": list(model.parameters()), "weight_decay": 0.05}]
        schedule = Schedule(STEPS, PEAK_LR, WARMUP)
        run = Run(model, groups, schedule, path.with_suffix(".state.pt"), ema_decay=0.99)
        for step in run.steps():
            images, labels = training_batch(training, step, seed, BATCH, most_shift=4)
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            run.update(loss, step)
            run.log(perception=loss.item())
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().requires_grad_(False)
