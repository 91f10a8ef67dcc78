"""Small random GSQ tokenizers whose every parameter matters."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from arvg_trt.families.gsq.config import GsqConfig
from arvg_trt.families.gsq.model import GsqTokenizer

from ..shared.models import Payload

# Two resolutions, of different widths, and two groups.
GROUPED = GsqConfig(32, (1, 2), 1, 8, 2, 64)
EXPORTED = replace(GROUPED, channels_mult=(1, 1, 2))
SINGLE = GsqConfig(32, (1, 1, 2), 2, 6, 1, 48)


@dataclass(frozen=True)
class TinyGsq:
    """A model and the workspace that its checkpoint was exported to."""

    model: GsqTokenizer
    workspace: Path

    @property
    def folder(self) -> Path:
        return self.workspace / "export"


def write_checkpoint(model: GsqTokenizer, folder: Path) -> Path:
    """The official form: beside the weights, pickled bytes, which here say when they run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    config = pickle.dumps(Payload(folder / "ran"))
    torch.save({"model_state_dict": model.state_dict(), "config": config}, path)
    return path


def random_gsq(config: GsqConfig = GROUPED, seed: int = 0) -> GsqTokenizer:
    """PyTorch's start, with norms and biases that are not 1 and 0, and rows of unequal length."""
    torch.manual_seed(seed)
    model = GsqTokenizer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    rows = model.quantizers.codebook.weight
    rows.mul_(1 + 0.2 * torch.rand(len(rows), 1))
    model.encoder.fianl_layers[2].weight.mul_(4)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma.bias"):
            parameter.add_(1)  # a channel that the scale makes constant has no digits left
    return model
