"""The LlamaGens that are known by name."""

from __future__ import annotations

from ..base import Variant, unsized_variant
from ..llamagen_vq.config import HUB, VQ16_FILE
from ..shared.llama.config import LlamaConfig
from .config import PUBLISHED

GRAPHS = ("encoder", "decoder", "step", "full")
PARAMETERS = {
    "b": 110_888_448,
    "l": 342_910_976,
    "xl": 774_699_520,
    "xxl": 1_410_972_672,
    "3b": 3_096_659_200,
}


def llamagen_entry(variant: str) -> Variant:
    """Return a published model; both of its files are in one repository of the Hub."""
    size, side = variant.split("-")
    name = f"c2i_{size.upper()}_{side}"
    files = tuple((f"{name}.{kind}", f"{VQ16_FILE}.{kind}") for kind in ("pt", "safetensors"))
    config, parameters = PUBLISHED[variant], PARAMETERS[size]
    return Variant(f"llamagen-{variant}", "llamagen", parameters, config, files, HUB, GRAPHS)


VARIANTS = (
    *(llamagen_entry(variant) for variant in PUBLISHED),
    Variant(
        "llamagen-mini",
        "llamagen",
        1_707_008,
        LlamaConfig(6, 128, heads=4, length=64, num_classes=10, vocab_size=512),
        (("llamagen.safetensors", "tokenizer.safetensors"),),
        graphs=GRAPHS,
    ),
)
UNSIZED = unsized_variant("llamagen", "tokenizer", VARIANTS)
