"""Networks that measure images: tiny ones, and published ones with random weights."""

from __future__ import annotations

from pathlib import Path

import onnx
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


def saved(path: Path, text: str) -> Path:
    """Write a graph given as ONNX text."""
    header = '<ir_version: 10, opset_import: ["" : 21]>\n'
    model = onnx.parser.parse_model(header + text)
    onnx.save(model, path)
    return path


def colour_network(path: Path) -> Path:
    """Mean colours as `pool`, and their doubles as `spatial`."""
    return saved(
        path,
        """g (uint8[N,3,H,W] x) => (float[N,3] spatial, float[N,3] pool)
        <int64[2] axes = {2, 3}, float two = {2.0}>
        { wide = Cast<to = 1>(x) pool = ReduceMean<keepdims = 0>(wide, axes)
          spatial = Mul(pool, two) }""",
    )


def difference_network(path: Path, scale: float = 1.0) -> Path:
    """The mean absolute difference of two images in [-1, 1]."""
    return saved(
        path,
        f"""g (float[N,3,H,W] a, float[N,3,H,W] b) => (float[N] d)
        <int64[3] axes = {{1, 2, 3}}, float scale = {{{scale}}}>
        {{ gap = Sub(a, b) size = Abs(gap) mean = ReduceMean<keepdims = 0>(size, axes)
          d = Mul(mean, scale) }}""",
    )
