"""List the VARs that are known by name."""

from __future__ import annotations

from ..base import HubFile, Variant, unsized_variant
from ..var_vqvae.config import PATCH_NUMS_256, PATCH_NUMS_512
from ..var_vqvae.variants import HUB
from ..var_vqvae.variants import NAME as VAE
from ..var_vqvae.variants import PUBLISHED as PUBLISHED_VAE
from .config import VarConfig
from .config import published as published_config

GRAPHS = ("encoder", "decoder", "lookup", "update", "condition", "step", "full")
# Bytes and digests are those of the Git LFS pointers in the repository's commits; the pointers of
# the others were not found in public documents.
PUBLISHED_FILES = {
    "var_d16": (1_243_116_346, "4f6151aad91c94e03e224dd7358d8389fa05301c0c291279566998efb54b0ecb"),
    "var_d20": (2_405_720_018, "f7d232978e6fe82a4f2e0f5d82b012e01b1aa5abfe93ce2b56104ec0e878a10f"),
    "var_d24": (4_135_702_618, "1f5fa9cfec7be1c60034511eeacde06e24892f416d3d1e5fd227fdac56293dfc"),
}
# A trainer's snapshot holds the transformer and the VQVAE.
SNAPSHOTS = (("ar-ckpt-best.pth",), ("ar-ckpt-last.pth",))


def var_files(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the file sets of the transformer, under its official name, and the VQVAE."""
    return tuple((f"{name}.{kind}", f"{VAE}.{kind}") for kind in ("pth", "safetensors"))


def var_published(name: str) -> tuple[HubFile, ...]:
    """Return the two files of a published VAR, which is licensed as its code is."""
    size, digest = PUBLISHED_FILES.get(name, (None, None))
    return HubFile(HUB, f"{name}.pth", size, digest, license="MIT", login=False), PUBLISHED_VAE


def var_entry(depth: int, parameters: int, config: VarConfig) -> Variant:
    name = f"var_d{depth}"
    files, published = (*var_files(name), *SNAPSHOTS), var_published(name)
    return Variant(
        f"var-d{depth}", "var", parameters, config, files, HUB, GRAPHS, published=published
    )


VARIANTS = (
    var_entry(16, 310_283_520, published_config(16, PATCH_NUMS_256)),
    var_entry(20, 600_917_136, published_config(20, PATCH_NUMS_256)),
    var_entry(24, 1_033_399_360, published_config(24, PATCH_NUMS_256)),
    var_entry(30, 2_010_020_356, published_config(30, PATCH_NUMS_256)),
    var_entry(36, 2_353_893_904, published_config(36, PATCH_NUMS_512, shared_aln=True)),
    Variant(
        "var-mini",
        "var",
        1_903_768,
        VarConfig(
            depth=6,
            width=128,
            heads=4,
            patch_nums=(1, 2, 3, 4, 5, 6, 8),
            num_classes=10,
            vocab_size=512,
            latent_channels=16,
        ),
        (("var.safetensors", "vae.safetensors"),),
        graphs=GRAPHS,
    ),
)
UNSIZED = unsized_variant("var", "vae", VARIANTS)
