"""Make a VAR of real width with planted outliers, which scales a channel and a token are for.

Trained models have a few channels of their modulated norms that are much wider than the others, and
a first token that is extreme in some of them. No trained model of real width may be shipped, so
here both are put into random weights: in each block `CHANNELS` channels have a gain of `GAIN` and a
shift of `SHIFT`, their columns of qkv and fc1 are divided by `COLUMN`, and the first token's
position adds `SINK` to `SINKS` of them.

Linears are N(0, 1 / fan_in), all tables and codes N(0, 1), the gates and the other gains and
shifts what such a modulation makes of a class: logits are those of no trained model, close to
uniform over 4,096 tokens, so that top-1 agreement is a harder measure on it than on one that is
sure.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..families.var.config import VarConfig
from ..families.var.model import CHUNKS, VarBlock, VarTransformer
from ..families.var_vqvae.config import VarVqvaeConfig
from ..families.var_vqvae.model import VarVqvae
from ..pipeline.export import export_any
from ..workspace.stage import Reporter
from ..workspace.workspace import Workspace

CHANNELS, GAIN, SHIFT, COLUMN = 8, 30.0, 10.0, 15.0
SINKS, SINK = 2, 80.0
# Scales that make 256 tokens: 1 + 4 + 9 + 25 + 36 + 81 + 100.
CONFIG = VarConfig(depth=4, width=1024, heads=16, patch_nums=(1, 2, 3, 5, 6, 9, 10))


def planted_transformer(config: VarConfig, seed: int) -> VarTransformer:
    """Draw weights with `CHANNELS` wide channels a block and a first token far from the others.

    `config` has a modulation a block (no shared adaLN).
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, spread: float = 1.0) -> Tensor:
        return torch.randn(like.shape, generator=generator) * spread

    model = VarTransformer(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(noise(module.weight, module.in_features**-0.5))
                if module.bias is not None:
                    module.bias.zero_()
        tables = (model.pos_start, model.pos_1LC, model.class_emb.weight, model.lvl_embed.weight)
        for table in tables:
            table.copy_(noise(table))
        for block in model.blocks:
            channels = torch.randperm(config.width, generator=generator)[:CHANNELS]
            plant_channels(cast(VarBlock, block), channels)
            if block is model.blocks[0]:
                model.pos_1LC[0, 0, channels[:SINKS]] += SINK
    return model


def plant_channels(block: VarBlock, channels: Tensor) -> None:
    """Make both norms' `channels` wide and off centre, whatever the class."""
    weight, bias = cast(nn.Linear, block.ada_lin[1]).parameters()
    weight.view(CHUNKS, -1, weight.shape[1])[2:, channels] = 0
    _, _, scale1, scale2, shift1, shift2 = bias.view(CHUNKS, -1)
    for scale, shift in ((scale1, shift1), (scale2, shift2)):
        scale[channels] = GAIN - 1
        shift[channels] = SHIFT
    attention = block.attn
    for linear in (attention.mat_qkv, block.ffn.fc1):
        linear.weight[:, channels] /= COLUMN


def small_tokenizer(config: VarConfig, seed: int) -> VarVqvae:
    """Return a tokenizer that turns tokens into features of unit size, and noise images."""
    torch.manual_seed(seed)
    model = VarVqvae(
        VarVqvaeConfig(
            channels=32,
            num_res_blocks=1,
            latent_channels=config.latent_channels,
            vocab_size=config.vocab_size,
            patch_nums=config.patch_nums,
        )
    )
    nn.init.normal_(model.quantize.embedding.weight)
    nn.init.normal_(model.quant_conv.weight)  # the codes that photographs take are then many
    return model


def write_planted(folder: Path, config: VarConfig = CONFIG, seed: int = 0) -> None:
    """Write both halves of a checkpoint that `export var` takes."""
    folder.mkdir(parents=True)
    parts = {
        "model": planted_transformer(config, seed),
        "vae": small_tokenizer(config, seed),
    }
    for name, model in parts.items():
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")


def export_planted(
    workspace: Workspace, checkpoint: Path, reporter: Reporter, seed: int = 0
) -> None:
    """Write the checkpoint to the folder `checkpoint` and export it as any VAR."""
    write_planted(checkpoint, seed=seed)
    export_any(workspace, "var", str(checkpoint), "skimage", (), reporter)
