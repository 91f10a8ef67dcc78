"""Define LlamaGen's VQ (Sun et al. 2024), the tokenizer of LlamaGen and PAR."""

from __future__ import annotations

from ..base import Family
from .variants import VARIANTS

FAMILY = Family(
    name="llamagen_vq",
    variants=VARIANTS,
    exporter="arvg_trt.families.llamagen_vq.export:LlamagenVqExporter",
)
