"""The models that are known by name. The zoo is data: a new variant is one entry."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ExportError
from .tokenizers.cosmos_config import CosmosConfig

MODELS = Path(__file__).parent.parent / "models"
JIT_FILES = (("autoencoder.jit",), ("encoder.jit", "decoder.jit"), ("model.safetensors",))


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A variant: its configuration, what its checkpoint consists of, where it is published.

    `files` lists the sets of file names that make a complete checkpoint, best first.
    """

    name: str
    family: str
    parameters: int
    config: CosmosConfig
    files: tuple[tuple[str, ...], ...]
    hub: str | None = None
    graphs: tuple[str, ...] = ("encoder", "decoder")


DI = CosmosConfig()
CI = CosmosConfig(z_channels=16, latent_channels=16, levels=())

ZOO = (
    ZooEntry(
        "cosmos-di8x8", "cosmos", 79_004_342, DI, JIT_FILES, "nvidia/Cosmos-0.1-Tokenizer-DI8x8"
    ),
    ZooEntry(
        "cosmos-di16x16",
        "cosmos",
        83_723_958,
        replace(DI, spatial_compression=16),
        JIT_FILES,
        "nvidia/Cosmos-0.1-Tokenizer-DI16x16",
    ),
    ZooEntry(
        "cosmos-ci8x8", "cosmos", 76_789_472, CI, JIT_FILES, "nvidia/Cosmos-0.1-Tokenizer-CI8x8"
    ),
    ZooEntry(
        "cosmos-ci16x16",
        "cosmos",
        81_509_088,
        replace(CI, spatial_compression=16),
        JIT_FILES,
        "nvidia/Cosmos-0.1-Tokenizer-CI16x16",
    ),
    ZooEntry(
        "cosmos-mini-di8x8",
        "cosmos",
        3_036_214,
        CosmosConfig(channels=32, channels_mult=(2, 3, 3), z_channels=64),
        (("model.safetensors",),),
    ),
)


def find_model(name: str) -> ZooEntry:
    """Raises ExportError with the nearest names."""
    for entry in ZOO:
        if entry.name == name:
            return entry
    names = [entry.name for entry in ZOO]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    raise ExportError(f"no model named {name!r}", do=f"nearest: {', '.join(near or names)}")


def shipped_checkpoint(entry: ZooEntry) -> str:
    """The weights that this package ships for a model.

    Raises:
        ExportError: it ships none; says where they are published.
    """
    folder = MODELS / entry.name
    if folder.is_dir():
        return str(folder)
    published = f", or --checkpoint {entry.hub}" if entry.hub else ""
    raise ExportError(f"no checkpoint given for {entry.name}", do=f"--checkpoint PATH{published}")


def check_config(entry: ZooEntry, found: CosmosConfig, where: str) -> None:
    """A checkpoint of another variant is refused, with what differs."""
    if found == entry.config:
        return
    differ = [
        f"{name} is {getattr(found, name)}, not {getattr(entry.config, name)}"
        for name in CosmosConfig.__slots__
        if getattr(found, name) != getattr(entry.config, name)
    ]
    like = next((e.name for e in ZOO if e.config == found), None)
    raise ExportError(
        f"is not {entry.name}: {', '.join(differ)}",
        where=where,
        do=f"it is a {like}" if like else "use the checkpoint of the model you name",
    )
