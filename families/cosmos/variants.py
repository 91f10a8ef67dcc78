"""List the Cosmos tokenizers that are known by name."""

from __future__ import annotations

from dataclasses import replace

from ..base import Variant
from .config import CosmosConfig

JIT_FILES = (("autoencoder.jit",), ("encoder.jit", "decoder.jit"), ("model.safetensors",))
DI = CosmosConfig()
CI = CosmosConfig(z_channels=16, latent_channels=16, levels=())

VARIANTS = (
    Variant(
        "cosmos-di8x8", "cosmos", 79_004_342, DI, JIT_FILES, "nvidia/Cosmos-0.1-Tokenizer-DI8x8"
    ),
    Variant(
        "cosmos-di16x16",
        "cosmos",
        83_723_958,
        replace(DI, spatial_compression=16),
        JIT_FILES,
        "nvidia/Cosmos-0.1-Tokenizer-DI16x16",
    ),
    Variant(
        "cosmos-ci8x8", "cosmos", 76_789_472, CI, JIT_FILES, "nvidia/Cosmos-0.1-Tokenizer-CI8x8"
    ),
    Variant(
        "cosmos-ci16x16",
        "cosmos",
        81_509_088,
        replace(CI, spatial_compression=16),
        JIT_FILES,
        "nvidia/Cosmos-0.1-Tokenizer-CI16x16",
    ),
    Variant(
        "cosmos-mini-di8x8",
        "cosmos",
        3_036_214,
        CosmosConfig(channels=32, channels_mult=(2, 3, 3), z_channels=64),
        (("model.safetensors",),),
    ),
)
UNSIZED = Variant("cosmos", "cosmos", 0, None, JIT_FILES)
