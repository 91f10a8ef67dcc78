"""List VAR's VQVAE as a model; its file may be of any size."""

from __future__ import annotations

from ..base import HubFile, Variant

NAME = "vae_ch160v4096z32"
HUB = "FoundationVision/var"
# Bytes and digest are those of the Git LFS pointer in the repository's commits.
SHA256 = "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c"
FILES = ((f"{NAME}.pth",), (f"{NAME}.safetensors",), ("vae.safetensors",))
PUBLISHED = HubFile(HUB, f"{NAME}.pth", 436_075_834, SHA256, license="MIT", login=False)
VARIANTS = (
    Variant("var-vqvae", "var_vqvae", 108_948_355, None, FILES, HUB, published=(PUBLISHED,)),
)
