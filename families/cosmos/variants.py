"""List the Cosmos tokenizers that are known by name."""

from __future__ import annotations

from dataclasses import replace

from ..base import HubFile, Variant
from .config import CosmosConfig

JIT_FILES = (("autoencoder.jit",), ("encoder.jit", "decoder.jit"), ("model.safetensors",))
DI = CosmosConfig()
CI = CosmosConfig(z_channels=16, latent_channels=16, levels=())

HUB = "nvidia/Cosmos-0.1-Tokenizer"


def cosmos_entry(name: str, parameters: int, config: CosmosConfig, megabytes: int) -> Variant:
    """Return a published tokenizer: one archive holds both halves.

    Its size is as the Hub's page rounds it. The terms may have to be accepted first: public
    documents do not agree on that.
    """
    repo = f"{HUB}-{name}"
    file = HubFile(
        repo, "autoencoder.jit", megabytes * 1_000_000, license="nvidia-open-model-license"
    )
    called = f"cosmos-{name.lower()}"
    return Variant(called, "cosmos", parameters, config, JIT_FILES, repo, published=(file,))


VARIANTS = (
    cosmos_entry("DI8x8", 79_004_342, DI, 159),
    cosmos_entry("DI16x16", 83_723_958, replace(DI, spatial_compression=16), 169),
    cosmos_entry("CI8x8", 76_789_472, CI, 154),
    cosmos_entry("CI16x16", 81_509_088, replace(CI, spatial_compression=16), 163),
    Variant(
        "cosmos-mini-di8x8",
        "cosmos",
        3_036_214,
        CosmosConfig(channels=32, channels_mult=(2, 3, 3), z_channels=64),
        (("model.safetensors",),),
    ),
)
UNSIZED = Variant("cosmos", "cosmos", 0, None, JIT_FILES)
