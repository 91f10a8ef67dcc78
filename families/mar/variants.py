"""List the MARs that are known by name."""

from __future__ import annotations

from ..base import HubFile, Variant, unsized_variant
from ..kl_vae.variants import HUB
from ..kl_vae.variants import NAME as VAE
from ..kl_vae.variants import PUBLISHED as PUBLISHED_VAE
from .config import PUBLISHED, MarConfig

# Bytes and digests are those of the Git LFS pointers in the repository's commits.
PUBLISHED_FILES = {
    "base": (831_736_456, "d8735425f563a88bd7aabc5ff8ac43d2b3dbb0777b8dc4e0dbcb1abfb6c5cb07"),
    "large": (1_913_355_128, "558ed22f240aad7a4c6fd1add604a58b30610c8ae62a9d608fa8fefb3846bb45"),
    "huge": (3_769_676_360, "cac36cd25a1bee61c9f0aa705748fd5b17eb8833048dfb6cc3bedb7b6412c08d"),
}
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
    published = (
        HubFile(HUB, f"mar-{size}.safetensors", *PUBLISHED_FILES[size], license="MIT"),
        PUBLISHED_VAE,
    )
    name = f"mar-{size[0]}"
    return Variant(name, "mar", parameters, config, files, HUB, GRAPHS, published=published)


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
