"""The variants that are known by name, as data: a new one is an entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .cosmos.config import CosmosConfig
from .gsq.config import PUBLISHED as GSQ_PUBLISHED
from .gsq.config import GsqConfig
from .mar.config import PUBLISHED as MAR_PUBLISHED
from .mar.config import MarConfig
from .par.config import PUBLISHED as PUBLISHED_PAR
from .par.config import ParConfig
from .rar.config import PUBLISHED, RarConfig
from .var.config import PATCH_NUMS_256, PATCH_NUMS_512, VarConfig, published

JIT_FILES = (("autoencoder.jit",), ("encoder.jit", "decoder.jit"), ("model.safetensors",))
VAR_VAE = "vae_ch160v4096z32"
VAR_HUB = "FoundationVision/var"
VAR_GRAPHS = ("encoder", "decoder", "lookup", "update", "condition", "step", "full")
# A trainer's snapshot holds the transformer and the VQVAE.
VAR_SNAPSHOTS = (("ar-ckpt-best.pth",), ("ar-ckpt-last.pth",))

RAR_TOKENIZER = "maskgit-vqgan-imagenet-f16-256"
RAR_HUB = "yucornetto/RAR"
RAR_TOKENIZER_HUB = "fun-research/TiTok"
RAR_GRAPHS = ("encoder", "decoder", "condition", "step", "full")

MAR_VAE = "kl16"
# The authors give files elsewhere; these were converted by others.
MAR_HUB = "jadechoghari/mar"
MAR_GRAPHS = ("encoder", "decoder", "pass", "denoise")

LLAMAGEN_VQ16 = "vq_ds16_c2i"
LLAMAGEN_VQ8 = "vq_ds8_c2i"
PAR_HUB = "Epiphqny/PAR"
LLAMAGEN_HUB = "FoundationVision/LlamaGen"
PAR_GRAPHS = ("encoder", "decoder", "step", "full")

GSQ_FILES = (("checkpoint.pt",), ("model.safetensors",))
GSQ_HUB = "HelmholtzAI-FZJ/GSQ"

Config = CosmosConfig | VarConfig | RarConfig | ParConfig | GsqConfig | MarConfig


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A variant: its configuration, what its checkpoint consists of, where it is published.

    `files` lists the sets of file names that make a complete checkpoint, best first. `parameters`
    of a generator are those of its transformer, by which it is named. An entry without a
    configuration takes any size of its family. `elsewhere` names the Hub repositories of files
    that are not in `hub`.
    """

    name: str
    family: str
    parameters: int
    config: Config | None
    files: tuple[tuple[str, ...], ...]
    hub: str | None = None
    graphs: tuple[str, ...] = ("encoder", "decoder")
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Whether it makes images of classes; else it is an image tokenizer."""
        return self.family not in ("cosmos", "gsq")


DI = CosmosConfig()
CI = CosmosConfig(z_channels=16, latent_channels=16, levels=())

COSMOS = (
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


def var_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with the VQVAE's."""
    return tuple((f"{name}.{kind}", f"{VAR_VAE}.{kind}") for kind in ("pth", "safetensors"))


def var_entry(depth: int, parameters: int, config: VarConfig) -> ZooEntry:
    files = (*var_files(f"var_d{depth}"), *VAR_SNAPSHOTS)
    return ZooEntry(f"var-d{depth}", "var", parameters, config, files, VAR_HUB, VAR_GRAPHS)


VAR = (
    var_entry(16, 310_283_520, published(16, PATCH_NUMS_256)),
    var_entry(20, 600_917_136, published(20, PATCH_NUMS_256)),
    var_entry(24, 1_033_399_360, published(24, PATCH_NUMS_256)),
    var_entry(30, 2_010_020_356, published(30, PATCH_NUMS_256)),
    var_entry(36, 2_353_893_904, published(36, PATCH_NUMS_512, shared_aln=True)),
    ZooEntry(
        "var-mini",
        "var",
        1_903_768,
        VarConfig(
            depth=6,
            width=128,
            heads=4,
            patch_nums=(1, 2, 3, 4, 5, 6, 8),
            num_classes=10,
            vocab_size=512,
            latent_channels=16,
        ),
        (("var.safetensors", "vae.safetensors"),),
        graphs=VAR_GRAPHS,
    ),
)


def rar_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with the tokenizer's."""
    return tuple((f"{name}.{kind}", f"{RAR_TOKENIZER}.{kind}") for kind in ("bin", "safetensors"))


def rar_entry(size: str, parameters: int) -> ZooEntry:
    elsewhere = {f"{RAR_TOKENIZER}.bin": RAR_TOKENIZER_HUB}
    files, config = rar_files(f"rar_{size}"), PUBLISHED[size][0]
    return ZooEntry(f"rar-{size}", "rar", parameters, config, files, RAR_HUB, RAR_GRAPHS, elsewhere)


RAR = (
    rar_entry("b", 260_923_648),
    rar_entry("l", 461_668_352),
    rar_entry("xl", 955_425_024),
    rar_entry("xxl", 1_498_520_704),
    ZooEntry(
        "rar-mini",
        "rar",
        2_250_624,
        RarConfig(6, 128, heads=4, length=64, num_classes=10, vocab_size=512),
        (("rar.safetensors", "tokenizer.safetensors"),),
        graphs=RAR_GRAPHS,
    ),
)


def mar_files(size: str) -> tuple[tuple[str, ...], ...]:
    """The trainer's file with the autoencoder's, side by side or in the folders they come in; as
    the Hub has them.
    """
    trained, vae = "checkpoint-last.pth", f"{MAR_VAE}.ckpt"
    return (
        (trained, vae),
        (f"mar/mar_{size}/{trained}", f"vae/{vae}"),
        (f"mar-{size}.safetensors", f"{MAR_VAE}.safetensors"),
    )


def mar_entry(size: str, parameters: int) -> ZooEntry:
    config, files = MAR_PUBLISHED[size[0]][0], mar_files(size)
    return ZooEntry(f"mar-{size[0]}", "mar", parameters, config, files, MAR_HUB, MAR_GRAPHS)


MAR = (
    mar_entry("base", 207_924_768),
    mar_entry("large", 478_326_304),
    mar_entry("huge", 942_403_104),
    ZooEntry(
        "mar-mini",
        "mar",
        2_341_968,
        MarConfig(
            encoder_depth=4,
            decoder_depth=4,
            width=128,
            heads=4,
            head_depth=3,
            head_width=192,
            length=64,
            buffer=4,
            latent_channels=8,
            num_classes=10,
            frequencies=64,
            latent_scale=0.508,
        ),
        (("mar.safetensors", "vae.safetensors"),),
        graphs=MAR_GRAPHS,
    ),
)


def par_files(name: str) -> tuple[tuple[str, ...], ...]:
    """The transformer's file under its official name, with a tokenizer's; VQ-16 is the usual."""
    return tuple(
        (f"{name}.{kind}", f"{tokenizer}.{kind}")
        for tokenizer in (LLAMAGEN_VQ16, LLAMAGEN_VQ8)
        for kind in ("pt", "safetensors")
    )


def par_entry(variant: str, parameters: int) -> ZooEntry:
    size, group = variant.split("-")
    elsewhere = {f"{name}.pt": LLAMAGEN_HUB for name in (LLAMAGEN_VQ16, LLAMAGEN_VQ8)}
    return ZooEntry(
        f"par-{variant}",
        "par",
        parameters,
        PUBLISHED_PAR[variant],
        par_files(f"PAR-{size.upper()}-{group}"),
        PAR_HUB,
        PAR_GRAPHS,
        elsewhere,
    )


PAR = (
    par_entry("l-4x", 342_914_048),
    par_entry("l-16x", 342_926_336),
    par_entry("xl-4x", 774_703_360),
    par_entry("xl-16x", 774_718_720),
    par_entry("xxl-4x", 1_410_977_280),
    par_entry("xxl-16x", 1_410_995_712),
    par_entry("3b-4x", 3_096_668_800),
    par_entry("3b-16x", 3_096_707_200),
    ZooEntry(
        "par-mini",
        "par",
        1_707_392,
        ParConfig(6, 128, heads=4, length=64, num_classes=10, vocab_size=512),
        (("par.safetensors", "tokenizer.safetensors"),),
        graphs=PAR_GRAPHS,
    ),
)
GSQ = tuple(
    ZooEntry(
        f"gsq-{name.lower().replace('_', '-')}",
        "gsq",
        parameters,
        config,
        GSQ_FILES,
        f"{GSQ_HUB}-{name}",
    )
    for name, (config, parameters) in GSQ_PUBLISHED.items()
)
GSQ_MINI = ZooEntry(
    "gsq-mini",
    "gsq",
    1_821_715,
    GsqConfig(32, (1, 1, 2, 3), num_res_blocks=1, latent_channels=16, groups=4, vocab_size=512),
    (("model.safetensors",),),
)
ZOO = (*COSMOS, *VAR, *RAR, *PAR, *MAR, *GSQ, GSQ_MINI)


def any_size(family: str, partner: str, entries: Sequence[ZooEntry]) -> ZooEntry:
    """An entry of any size of a family: the configuration comes from the checkpoint alone.

    Files of both models come before a trainer's snapshot, as they do in `entries`.
    """
    plain = ("model.safetensors", f"{partner}.safetensors")
    found = dict.fromkeys((plain, *(files for entry in entries for files in entry.files)))
    files = tuple(sorted(found, key=len, reverse=True))
    return ZooEntry(family, family, 0, None, files, graphs=entries[0].graphs)


ANY_SIZE = (
    any_size("var", "vae", VAR),
    any_size("rar", "tokenizer", RAR),
    ZooEntry("gsq", "gsq", 0, None, GSQ_FILES),
    ZooEntry("cosmos", "cosmos", 0, None, JIT_FILES),
    any_size("mar", "vae", MAR),
    any_size("par", "tokenizer", PAR),
)
