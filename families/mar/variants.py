"""List the MARs that are known by name."""

from __future__ import annotations

from ..base import Variant, unsized_variant
from .config import PUBLISHED, MarConfig

VAE = "kl16"
# The authors give files elsewhere; these were converted by others.
HUB = "jadechoghari/mar"
GRAPHS = ("encoder", "decoder", "pass", "denoise")


def mar_files(size: str) -> tuple[tuple[str, ...], ...]:
    """Return file sets of the trainer's file and the autoencoder's.

    They lie side by side, in the folders they come in, or as the Hub has them.
    """
    trained, vae = "checkpoint-last.pth", f"{VAE}.ckpt"
    return (
        (trained, vae),
        (f"mar/mar_{size}/{trained}", f"vae/{vae}"),
        (f"mar-{size}.safetensors", f"{VAE}.safetensors"),
    )


def mar_entry(size: str, parameters: int) -> Variant:
    config, files = PUBLISHED[size[0]][0], mar_files(size)
    return Variant(f"mar-{size[0]}", "mar", parameters, config, files, HUB, GRAPHS)


VARIANTS = (
    mar_entry("base", 207_924_768),
    mar_entry("large", 478_326_304),
    mar_entry("huge", 942_403_104),
    Variant(
        "mar-mini",
        "mar",
        2_341_968,
        MarConfig(
            encoder_depth=4,
            decoder_depth=4,
            width=128,
            heads=4,
            head_depth=3,
            head_width=192,
            length=64,
            buffer=4,
            latent_channels=8,
            num_classes=10,
            frequencies=64,
            latent_scale=0.508,
        ),
        (("mar.safetensors", "vae.safetensors"),),
        graphs=GRAPHS,
    ),
)
UNSIZED = unsized_variant("mar", "vae", VARIANTS)
