"""The LlamaGens that are known by name."""

from __future__ import annotations

from ..base import HubFile, Variant, unsized_variant
from ..llamagen_vq.config import HUB, PUBLISHED_VQ16, VQ16_FILE
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
# Bytes and digests are those of the Git LFS pointers in the repository's commits; b-256 has the
# size that the Hub's page rounds to three digits.
PUBLISHED_FILES: dict[str, tuple[int, str | None]] = {
    "b-256": (444_000_000, None),
    "b-384": (443_736_709, "7ddf3a659b180e4339e4dab8802183ede1ea8f44c5cfd4359ab27bef979c17ad"),
    "l-256": (1_371_712_314, "15fe788b9c0e8dfe36f3e3fd701b44d0c934e4fd94a0ab599b69669aa8f44a55"),
    "l-384": (1_371_860_346, "9b8cb63634d11e684b4a68017abffff6698752ef715058a77e5e089539ebc39a"),
    "xl-384": (3_099_048_319, "736cb92bebdcb16737dbd35210a07ae4f7fd001cdfd55b26205d89182d1807ba"),
    "3b-384": (12_386_725_354, "1e9173ecbe81295b1d80b021b2bf57ed4ef089601b6745336ff20a9f382c4cac"),
}
# The digest of xxl-384 was found, its size was not.
XXL_SHA256 = "cba5a780b9d2394386e7410c630bced3a70e109cf7107e1783c9a986e9e7754e"


def llamagen_published(variant: str, name: str) -> tuple[HubFile, ...]:
    """Return the transformer's file and the tokenizer's."""
    size, digest = PUBLISHED_FILES.get(variant, (None, XXL_SHA256))
    return (HubFile(HUB, f"{name}.pt", size, digest, license="MIT", login=False), PUBLISHED_VQ16)


def llamagen_entry(variant: str) -> Variant:
    """Return a published model; both of its files are in one repository of the Hub."""
    size, side = variant.split("-")
    name = f"c2i_{size.upper()}_{side}"
    files = tuple((f"{name}.{kind}", f"{VQ16_FILE}.{kind}") for kind in ("pt", "safetensors"))
    config, parameters = PUBLISHED[variant], PARAMETERS[size]
    published = llamagen_published(variant, name)
    called = f"llamagen-{variant}"
    return Variant(called, "llamagen", parameters, config, files, HUB, GRAPHS, published=published)


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
