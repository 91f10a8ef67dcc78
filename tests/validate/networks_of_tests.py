"""Random weights of the networks that measure images, under the names of their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from arvg_trt.tests.validate.oracles import ALEXNET, VGG16, layers, published


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """Weights that keep the scale of activations, and batch norms that do something."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.normal_(part.bias, 0, 0.1)
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.7, 1.3)
    return module.eval()


def save_inception(path: Path) -> nn.Module:
    """torch-fidelity's Inception with random weights, saved as its checkpoint has them."""
    kind = published("torch_fidelity.feature_extractor_inceptionv3")
    names = ["2048", "logits_unbiased"]

    class Untrained(kind.FeatureExtractorInceptionV3):  # type: ignore[name-defined]
        def load_state_dict(self, *_: object, **__: object) -> None: ...

    torch.save({}, path)
    made = randomized(Untrained("inception", names, feature_extractor_weights_path=str(path)), 1)
    torch.save(made.state_dict(), path)
    return made


def save_backbone(path: Path, name: str) -> dict[str, torch.Tensor]:
    """AlexNet's or VGG16's convolutions with random weights, as torchvision names them."""
    plan, pool = (ALEXNET, 3) if name == "alex" else (VGG16, 2)
    features = randomized(layers(plan, pool).features, 2)
    tensors = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save(tensors | {"classifier.6.weight": torch.zeros(10, 4)}, path)
    return tensors
