"""Define MaskGIT-VQ (Chang et al. 2022), the tokenizer of RAR."""

from __future__ import annotations

from ..base import Family
from .variants import VARIANTS

FAMILY = Family(
    name="maskgit_vq",
    variants=VARIANTS,
    exporter="arvg_trt.families.maskgit_vq.export:MaskgitVqExporter",
)
