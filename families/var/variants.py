"""List the VARs that are known by name."""

from __future__ import annotations

from ..base import Variant, unsized_variant
from ..var_vqvae.config import PATCH_NUMS_256, PATCH_NUMS_512
from .config import VarConfig, published

VAE = "vae_ch160v4096z32"
HUB = "FoundationVision/var"
GRAPHS = ("encoder", "decoder", "lookup", "update", "condition", "step", "full")
# A trainer's snapshot holds the transformer and the VQVAE.
SNAPSHOTS = (("ar-ckpt-best.pth",), ("ar-ckpt-last.pth",))


def var_files(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the file sets of the transformer, under its official name, and the VQVAE."""
    return tuple((f"{name}.{kind}", f"{VAE}.{kind}") for kind in ("pth", "safetensors"))


def var_entry(depth: int, parameters: int, config: VarConfig) -> Variant:
    files = (*var_files(f"var_d{depth}"), *SNAPSHOTS)
    return Variant(f"var-d{depth}", "var", parameters, config, files, HUB, GRAPHS)


VARIANTS = (
    var_entry(16, 310_283_520, published(16, PATCH_NUMS_256)),
    var_entry(20, 600_917_136, published(20, PATCH_NUMS_256)),
    var_entry(24, 1_033_399_360, published(24, PATCH_NUMS_256)),
    var_entry(30, 2_010_020_356, published(30, PATCH_NUMS_256)),
    var_entry(36, 2_353_893_904, published(36, PATCH_NUMS_512, shared_aln=True)),
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
