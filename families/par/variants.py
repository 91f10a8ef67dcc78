"""The PARs that are known by name."""

from __future__ import annotations

from ..base import HubFile, Variant, unsized_variant
from ..llamagen_vq.config import HUB as TOKENIZER_HUB
from ..llamagen_vq.config import PUBLISHED_VQ16, VQ8_FILE, VQ16_FILE
from .config import PUBLISHED, ParConfig

HUB = "Epiphqny/PAR"
GRAPHS = ("encoder", "decoder", "step", "full")


def par_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with a tokenizer's; VQ-16 is the usual."""
    return tuple(
        (f"{name}.{kind}", f"{tokenizer}.{kind}")
        for tokenizer in (VQ16_FILE, VQ8_FILE)
        for kind in ("pt", "safetensors")
    )


def par_entry(variant: str, parameters: int) -> Variant:
    size, group = variant.split("-")
    elsewhere = {f"{name}.pt": TOKENIZER_HUB for name in (VQ16_FILE, VQ8_FILE)}
    return Variant(
        f"par-{variant}",
        "par",
        parameters,
        PUBLISHED[variant],
        par_files(f"PAR-{size.upper()}-{group}"),
        HUB,
        GRAPHS,
        elsewhere,
        # Public documents say neither licence nor size of these files.
        (HubFile(HUB, f"PAR-{size.upper()}-{group}.pt"), PUBLISHED_VQ16),
    )


VARIANTS = (
    par_entry("l-4x", 342_914_048),
    par_entry("l-16x", 342_926_336),
    par_entry("xl-4x", 774_703_360),
    par_entry("xl-16x", 774_718_720),
    par_entry("xxl-4x", 1_410_977_280),
    par_entry("xxl-16x", 1_410_995_712),
    par_entry("3b-4x", 3_096_668_800),
    par_entry("3b-16x", 3_096_707_200),
    Variant(
        "par-mini",
        "par",
        1_707_392,
        ParConfig(6, 128, heads=4, length=64, num_classes=10, vocab_size=512),
        (("par.safetensors", "tokenizer.safetensors"),),
        graphs=GRAPHS,
    ),
)
UNSIZED = unsized_variant("par", "tokenizer", VARIANTS)
