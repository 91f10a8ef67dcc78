"""Define LlamaGen's VQ (Sun et al. 2024), the tokenizer of LlamaGen and PAR."""

from __future__ import annotations

from ..base import Family, Variant

FILES = (("vq_ds16_c2i.pt",), ("vq_ds8_c2i.pt",), ("tokenizer.safetensors",))
FAMILY = Family(
    name="llamagen_vq",
    unsized=Variant("llamagen-vq", "llamagen_vq", 0, None, FILES),
    exporter="arvg_trt.families.llamagen_vq.export:LlamagenVqExporter",
)
