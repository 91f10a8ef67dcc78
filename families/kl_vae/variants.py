"""List KL-16 as a model; its file may be of any size."""

from __future__ import annotations

from ..base import HubFile, Variant

NAME = "kl16"
# The authors give the file elsewhere; this one was converted by others.
HUB = "jadechoghari/mar"
# Bytes and digest are those of the Git LFS pointer in the repository's commits.
SHA256 = "ae6e66b66cce64248cace5aa6cf8bdb3e834947801cbf7e059028592e2b1de31"
FILES = (
    *((name,) for name in (f"{NAME}.ckpt", f"vae/{NAME}.ckpt", f"{NAME}.safetensors")),
    ("vae.safetensors",),
)
PUBLISHED = HubFile(HUB, f"{NAME}.safetensors", 265_856_244, SHA256, license="MIT")
VARIANTS = (Variant("kl-16", "kl_vae", 66_456_019, None, FILES, HUB, published=(PUBLISHED,)),)
