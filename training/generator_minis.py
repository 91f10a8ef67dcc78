"""Define the generators of the minis: their sizes, and what is special in each training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..families.kl_vae.model import KlVae
from ..families.llamagen.model import LlamagenTransformer
from ..families.mar.config import MarConfig
from ..families.mar.model import MarTransformer
from ..families.par.config import ParConfig
from ..families.par.model import ParTransformer
from ..families.par.spec import generation_order
from ..families.rar.config import RarConfig
from ..families.rar.model import CHUNKS, RarTransformer
from ..families.shared.llama.config import LlamaConfig
from ..families.var.config import VarConfig
from ..families.var.model import VarTransformer
from ..families.var_vqvae.model import VarVqvae
from ..families.variants import MODELS
from . import mar_loss, tokenizer_minis
from .rar_orders import random_orders, rar_logits
from .tiny_imagenet import CLASSES, SIDE

VAR = VarConfig(
    depth=6,
    width=128,
    heads=4,
    patch_nums=tokenizer_minis.VAR.patch_nums,
    num_classes=CLASSES,
    vocab_size=tokenizer_minis.VAR.vocab_size,
    latent_channels=tokenizer_minis.VAR.latent_channels,
)
RAR = RarConfig(
    depth=6,
    width=128,
    heads=4,
    length=(SIDE // tokenizer_minis.RAR.stride) ** 2,
    num_classes=CLASSES,
    vocab_size=tokenizer_minis.RAR.vocab_size,
)
PAR = ParConfig(
    depth=6,
    width=128,
    heads=4,
    length=(SIDE // tokenizer_minis.PAR.stride) ** 2,
    group=4,
    num_classes=CLASSES,
    vocab_size=tokenizer_minis.PAR.vocab_size,
)
LLAMAGEN = LlamaConfig(
    depth=PAR.depth,
    width=PAR.width,
    heads=PAR.heads,
    length=PAR.length,
    num_classes=CLASSES,
    vocab_size=PAR.vocab_size,
)
MAR = MarConfig(
    encoder_depth=4,
    decoder_depth=4,
    width=128,
    heads=4,
    head_depth=3,
    head_width=192,
    length=(SIDE // tokenizer_minis.MAR.stride) ** 2,
    buffer=4,
    latent_channels=tokenizer_minis.MAR.latent_channels,
    num_classes=CLASSES,
    frequencies=64,
    latent_scale=0.508,
)
MASKS = 4  # shares of masked tokens that a trained MAR is measured at
DRAWS = 2  # times and noises drawn for each masked token of a MAR in a step


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold tokens int64 [N, L] of images, labels [N] (10 where dropped), and the progress.

    A MAR's tokens are the moments of latents, [N, L, 2C]. `progress` is 0 at the beginning of the
    training and 1 at its end, and when it is measured.
    """

    tokens: Tensor
    labels: Tensor
    progress: float
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class GeneratorMini:
    """Describe the training of one family's generator.

    `tokens` takes the tokenizer and images [N, 3, 64, 64] in [-1, 1]; `loss` the model, the
    tokenizer and a batch: the mean cross-entropy in nats of a token, or what a
    family without codes has for it. `config` goes to config.json
    beside the weights: what no shape tells. `measures` has what else is to be recorded of a
    trained model on held-out pictures.
    """

    file: str
    build: Callable[[], nn.Module]
    initialize: Callable[[Any], None]
    tokens: Callable[[Any, Tensor], Tensor]
    loss: Callable[[Any, Any, Batch], Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    views: int = 4
    measures: Callable[[Any, Batch], dict[str, float]] = lambda *_: {}


@torch.no_grad()
def initialize_var(model: VarTransformer) -> None:
    """Initialize as officially: a small head, residual outputs by depth, gates nearly shut.

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


def var_loss(model: VarTransformer, vae: VarVqvae, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of all tokens of all scales."""
    with torch.no_grad():
        features = vae.quantize.features(batch.tokens)
    return cross_entropy(model(batch.labels, features), batch.tokens)


@torch.no_grad()
def initialize_rar(model: RarTransformer) -> None:
    """Initialize as officially, without modulation at first, but with gates a little open.

    Officially weights are of deviation 0.02 at widths from 768; it grows as the width shrinks.
    """
    width = model.config.width
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "adaLN" in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            nn.init.trunc_normal_(parameter, std=0.5 / math.sqrt(width))
        if name.endswith("adaLN_modulation.1.bias") and parameter.numel() == CHUNKS * width:
            parameter.view(CHUNKS, width)[2::3] = 0.5
    clear_spare_rows(model)


def clear_spare_rows(model: RarTransformer) -> None:
    """Put zeros where the official tables have rows that nothing reads: they compress to nothing.

    Random ones take 0.5 MB of a wheel of 12.
    """
    last_target = model.config.length + 1
    for table in (model.pos_embed, model.target_aware_pos_embed):
        table[:, last_target + 1 :] = 0
    model.timesteps_embeddings[:, model.config.positions :] = 0


def rar_loss(model: RarTransformer, _: nn.Module, batch: Batch) -> Tensor:
    rows, length = batch.tokens.shape
    orders = random_orders(rows, length, batch.progress, batch.generator)
    logits = rar_logits(model, batch.tokens, batch.labels, orders)
    return cross_entropy(logits, batch.tokens.gather(1, orders))


@torch.no_grad()
def initialize_par(model: ParTransformer) -> None:
    """Initialize as officially, with a head of zeros; deviations are those of RAR."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5 / math.sqrt(model.config.width))
    nn.init.zeros_(model.output.weight)


def par_loss(model: ParTransformer, _: nn.Module, batch: Batch) -> Tensor:
    config = model.config
    tokens = batch.tokens[:, torch.from_numpy(generation_order(config.side, config.group))]
    return cross_entropy(model(batch.labels, tokens[:, : -config.group]), tokens)


def initialize_llamagen(model: LlamagenTransformer) -> None:
    """Take the trained weights of par-mini, which has the same and its special tokens."""
    trained = load_file(MODELS / "par-mini" / "par.safetensors")
    model.load_state_dict({name: trained[name].float() for name in model.state_dict()})


def llamagen_loss(model: LlamagenTransformer, _: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch.labels, batch.tokens[:, :-1]), batch.tokens)


def mar_moments(vae: KlVae, images: Tensor) -> Tensor:
    """Return mean and log variance of the latents in raster order, [N, L, 2C]."""
    return torch.cat(vae.moments(images), dim=1).flatten(2).transpose(1, 2)


def diffusion_loss(model: MarTransformer, _: nn.Module, batch: Batch) -> Tensor:
    latents = drawn_latents(model.config, batch)
    return mar_loss.mar_loss(model, latents, batch.labels, batch.generator, DRAWS)


def noise_errors(model: MarTransformer, batch: Batch) -> dict[str, float]:
    """Return the mean squared error of the noise, and of a guess by mean and variance alone."""
    latents = drawn_latents(model.config, batch)
    errors = [
        mar_loss.noise_errors(model, latents, batch.labels, batch.generator) for _ in range(MASKS)
    ]
    names = ("noise_error", "noise_error_of_linear_guess")
    means = (round(sum(values) / MASKS, 4) for values in zip(*errors, strict=True))
    return dict(zip(names, means, strict=True))


def drawn_latents(config: MarConfig, batch: Batch) -> Tensor:
    """Draw latents [N, L, C] of deviation about 1 from their moments."""
    mean, log_variance = batch.tokens.chunk(2, dim=2)
    noise = torch.randn(mean.shape, generator=batch.generator)
    return (mean + (0.5 * log_variance).exp() * noise) * config.latent_scale


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def map_tokens(tokenizer: Any, images: Tensor) -> Tensor:
    """Return the codes of a tokenizer with one map, in raster order."""
    return tokenizer.codes(tokenizer.encode(images)).flatten(1)  # type: ignore[no-any-return]


MINIS = {
    "var-mini": GeneratorMini(
        "var.safetensors",
        lambda: VarTransformer(VAR),
        initialize_var,
        lambda vae, images: vae.quantize.encode(vae.encode(images)),
        var_loss,
        views=6,
    ),
    "rar-mini": GeneratorMini(
        "rar.safetensors",
        lambda: RarTransformer(RAR),
        initialize_rar,
        map_tokens,
        rar_loss,
    ),
    "par-mini": GeneratorMini(
        "par.safetensors",
        lambda: ParTransformer(PAR),
        initialize_par,
        map_tokens,
        par_loss,
        {"n_head": PAR.heads, "block_size": PAR.length},
    ),
    "llamagen-mini": GeneratorMini(
        "llamagen.safetensors",
        lambda: LlamagenTransformer(LLAMAGEN),
        initialize_llamagen,
        map_tokens,
        llamagen_loss,
        {"n_head": LLAMAGEN.heads, "block_size": LLAMAGEN.length},
    ),
    "mar-mini": GeneratorMini(
        "mar.safetensors",
        lambda: MarTransformer(MAR),
        mar_loss.initialize,
        mar_moments,
        diffusion_loss,
        {"num_heads": MAR.heads, "latent_scale": MAR.latent_scale},
        measures=noise_errors,
    ),
}
