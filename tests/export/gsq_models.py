"""Small random GSQ tokenizers whose every parameter matters."""

from __future__ import annotations

import torch

from arvg_trt.export.tokenizers.gsq import GsqTokenizer
from arvg_trt.export.tokenizers.gsq_config import GsqConfig

# Two resolutions, of different widths, and two groups.
GROUPED = GsqConfig(32, (1, 2), 1, 8, 2, 64)
SINGLE = GsqConfig(32, (1, 1, 2), 2, 6, 1, 48)


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
    return model
