"""Define MaskGIT-VQ (Chang et al. 2022), the tokenizer of RAR."""

from __future__ import annotations

from ..base import Family, Variant

FILES = (("maskgit-vqgan-imagenet-f16-256.bin",), ("tokenizer.safetensors",))
FAMILY = Family(
    name="maskgit_vq",
    unsized=Variant("maskgit-vq", "maskgit_vq", 0, None, FILES),
    exporter="arvg_trt.families.maskgit_vq.export:MaskgitVqExporter",
)
