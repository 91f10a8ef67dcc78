"""List MaskGIT-VQ as a model; its file may be of any size."""

from __future__ import annotations

from ..base import HubFile, Variant

NAME = "maskgit-vqgan-imagenet-f16-256"
HUB = "fun-research/TiTok"
# Bytes and digest are those of the Git LFS pointer in the repository's commits.
SHA256 = "424e7f2b11d1d63691ae3fbab74cf6c417ecbe0d8f86187b71f3538c7b56f6d2"
FILES = ((f"{NAME}.bin",), (f"{NAME}.safetensors",), ("tokenizer.safetensors",))
PUBLISHED = HubFile(HUB, f"{NAME}.bin", 218_124_077, SHA256, license="Apache-2.0", login=False)
VARIANTS = (
    Variant("maskgit-vq", "maskgit_vq", 54_515_587, None, FILES, HUB, published=(PUBLISHED,)),
)
