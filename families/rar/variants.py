"""The RARs that are known by name."""

from __future__ import annotations

from typing import Any

from ..base import HubFile, Variant, unsized_variant
from ..maskgit_vq.variants import HUB as TOKENIZER_HUB
from ..maskgit_vq.variants import NAME as TOKENIZER
from ..maskgit_vq.variants import PUBLISHED as PUBLISHED_TOKENIZER
from .config import PUBLISHED, RarConfig

HUB = "yucornetto/RAR"
# Bytes and digests are those of the Git LFS pointers in the repositories' commits.
PUBLISHED_FILES = {
    "b": (1_043_822_726, "cbbf4b27dc36afae77fdb2fe0d6b9b5b7446eae45f1a9f91d442ab0b315b9ebf"),
    "l": (1_846_801_542, "edad8e9905e20a5df14eeee0d5d04c1be48b16a7751b4b3f4954a6dec8ad87d5"),
    "xl": (3_821_901_843, "7b4cec5c76f18dc7a3ea055a6b0cc4c5748c533768eed71564a88d897c762bc8"),
    "xxl": (5_994_340_236, "85aba44fef7aecfd879829077e541f09da4c29da3b1fd374837601d7322bf6ff"),
}
GRAPHS = ("encoder", "decoder", "condition", "step", "full")


def rar_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with the tokenizer's."""
    return tuple((f"{name}.{kind}", f"{TOKENIZER}.{kind}") for kind in ("bin", "safetensors"))


def rar_entry(size: str, parameters: int) -> Variant:
    elsewhere = {f"{TOKENIZER}.bin": TOKENIZER_HUB}
    files, config = rar_files(f"rar_{size}"), PUBLISHED[size][0]
    terms: dict[str, Any] = {"license": "Apache-2.0", "login": False}
    published = (
        HubFile(HUB, f"rar_{size}.bin", *PUBLISHED_FILES[size], **terms),
        PUBLISHED_TOKENIZER,
    )
    return Variant(
        f"rar-{size}", "rar", parameters, config, files, HUB, GRAPHS, elsewhere, published
    )


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
