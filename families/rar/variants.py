"""The RARs that are known by name."""

from __future__ import annotations

from ..base import Variant, unsized_variant
from .config import PUBLISHED, RarConfig

TOKENIZER = "maskgit-vqgan-imagenet-f16-256"
HUB = "yucornetto/RAR"
TOKENIZER_HUB = "fun-research/TiTok"
GRAPHS = ("encoder", "decoder", "condition", "step", "full")


def rar_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with the tokenizer's."""
    return tuple((f"{name}.{kind}", f"{TOKENIZER}.{kind}") for kind in ("bin", "safetensors"))


def rar_entry(size: str, parameters: int) -> Variant:
    elsewhere = {f"{TOKENIZER}.bin": TOKENIZER_HUB}
    files, config = rar_files(f"rar_{size}"), PUBLISHED[size][0]
    return Variant(f"rar-{size}", "rar", parameters, config, files, HUB, GRAPHS, elsewhere)


VARIANTS = (
    rar_entry("b", 260_923_648),
    rar_entry("l", 461_668_352),
    rar_entry("xl", 955_425_024),
    rar_entry("xxl", 1_498_520_704),
    Variant(
        "rar-mini",
        "rar",
        2_250_624,
        RarConfig(6, 128, heads=4, length=64, num_classes=10, vocab_size=512),
        (("rar.safetensors", "tokenizer.safetensors"),),
        graphs=GRAPHS,
    ),
)
UNSIZED = unsized_variant("rar", "tokenizer", VARIANTS)
