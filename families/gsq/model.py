"""Define the GSQ tokenizers, grouped spherical quantization, and load them strictly.

Own modules with the official parameter names; written from the published architecture
(github.com/HelmholtzAI-FZJ/flex_gen, ``flexTokenizer``, ``quantizers/group_vector_quantizer.py``).
Images are [N, 3, H, W] in [-1, 1]; H and W are multiples of the stride. What the decoder makes of
a pixel depends on the whole image, through the statistics that its norms take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from ...export.checkpoint.strict import build_strictly, count_items, locating, require_needed
from ..shared.convolution import NORM_GROUPS
from ..shared.vq import IMAGE_CHANNELS, VqTokenizer, channels_first, closeness
from ..shared.vq_checkpoint import require_widths
from .blocks import AdaptiveNorm, DepthToSpace, GsqBlock, GsqDownsample, conv3x3, latent_statistics
from .config import GsqConfig, Normalization

PART = 1 << 14  # codes that are compared at once
LEAST_LENGTH = 1e-12  # least length by which a vector is divided
COMMITMENT = 0.25
NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.fianl_layers.2.weight": 4,
    "decoder.conv_in.weight": 4,
    "decoder.final_layers.2.weight": 4,
    "quantizers.codebook.weight": 2,
}
NORMALIZERS: dict[Normalization, Callable[[Tensor], Tensor]] = {
    "l2": lambda x: F.normalize(x, dim=-1, eps=LEAST_LENGTH),
    "l1": lambda x: F.normalize(x, p=1.0, dim=-1, eps=LEAST_LENGTH),
    "clip": lambda x: x.clamp(-1, 1),
    "none": lambda x: x,
}


class GsqEncoder(nn.Module):
    """Encode an image [N, 3, H, W] to a latent [N, D, H/s, W/s].

    `blocks` are in order of execution.
    """

    def __init__(self, config: GsqConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.conv_in = conv3x3(IMAGE_CHANNELS, config.channels)
        self.blocks = nn.Sequential(*encoder_blocks(config))
        self.fianl_layers = nn.Sequential(  # sic
            nn.GroupNorm(NORM_GROUPS, width), nn.SiLU(), nn.Conv2d(width, config.latent_channels, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.fianl_layers(self.blocks(self.conv_in(image)))  # type: ignore[no-any-return]


def encoder_blocks(config: GsqConfig) -> Iterator[nn.Module]:
    count, last = config.num_res_blocks, len(config.widths) - 1
    channels = config.channels
    for level, width in enumerate(config.widths):
        if width != channels:
            yield GsqBlock(channels, width)
        yield from (GsqBlock(width, width) for _ in range(count))
        if level < last:
            yield GsqDownsample(width)
        channels = width
    yield from (GsqBlock(channels, channels) for _ in range(count))


class GsqDecoder(nn.Module):
    """Decode a quantized latent [N, D, h, w] to an image [N, 3, h*s, w*s], not clamped."""

    def __init__(self, config: GsqConfig) -> None:
        super().__init__()
        self.conv_in = conv3x3(config.latent_channels, config.widths[-1])
        self.blocks = nn.ModuleList(decoder_blocks(config))
        self.final_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, config.widths[0]),
            nn.SiLU(),
            conv3x3(config.widths[0], IMAGE_CHANNELS),
        )

    def forward(self, quantized: Tensor) -> Tensor:
        deviation, mean = latent_statistics(quantized)
        x = self.conv_in(quantized)
        for block in self.blocks:
            adaptive = isinstance(block, AdaptiveNorm)
            x = block(x, deviation, mean) if adaptive else block(x)
        return self.final_layers(x)  # type: ignore[no-any-return]


def decoder_blocks(config: GsqConfig) -> Iterator[nn.Module]:
    count, latent = config.num_res_blocks, config.latent_channels
    channels = config.widths[-1]
    yield from (GsqBlock(channels, channels) for _ in range(count))
    yield AdaptiveNorm(channels, latent)
    for level in reversed(range(len(config.widths))):
        width = config.widths[level]
        if width != channels:
            yield GsqBlock(channels, width)
        yield from (GsqBlock(width, width) for _ in range(count))
        if level > 0:
            yield DepthToSpace(width)
            yield AdaptiveNorm(width, latent)
        channels = width


class GsqQuantizer(nn.Module):
    """Quantize groups of channels to the nearest code of one codebook.

    Vectors and codes are compared after `normalization`.
    """

    def __init__(self, config: GsqConfig) -> None:
        super().__init__()
        self.groups = config.groups
        self.normalize = NORMALIZERS[config.normalization]
        self.codebook = nn.Embedding(config.vocab_size, config.code_channels)
        with torch.no_grad():  # the published start of training
            if config.normalization == "clip":
                self.codebook.weight.uniform_(-1, 1)
            else:
                self.codebook.weight.copy_(F.normalize(self.codebook.weight, dim=-1))

    def vectors(self, latent: Tensor) -> Tensor:
        """Return the normalised groups [N, h, w, G, D / G] of a latent [N, D, h, w]."""
        grouped = torch.unflatten(latent.permute(0, 2, 3, 1), -1, (self.groups, -1))
        return self.normalize(grouped)

    def table(self) -> Tensor:
        """Return the codes [V, D / G] as they are compared with `vectors`."""
        return self.normalize(self.codebook.weight)

    def codes(self, latent: Tensor) -> Tensor:
        """Return int64 codes [N, h, w], or [N, h, w, G], of a latent [N, D, h, w]."""
        codes = nearest_in_parts(self.vectors(latent), self.table())
        return codes.squeeze(-1) if self.groups == 1 else codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the quantized latent [N, D, h, w] of `codes`: the rows as trained."""
        return channels_first(self.codebook(codes).flatten(3))

    def straight_through(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return (quantized latent [N, D, h, w], loss of the codebook).

        It is for training only. The gradient of the quantized latent is that of the normalised one.
        The loss draws codes to vectors, and with a quarter of the strength vectors to codes.
        """
        with torch.no_grad():
            codes = self.codes(latent)
        vectors = self.vectors(latent).flatten(3).permute(0, 3, 1, 2)
        rows = self.lookup(codes)
        pull = F.mse_loss(rows, vectors.detach())
        commitment = F.mse_loss(vectors, rows.detach())
        return vectors + (rows - vectors).detach(), pull + COMMITMENT * commitment


def nearest_in_parts(vectors: Tensor, table: Tensor) -> Tensor:
    """Return the nearest code of each vector: [..., d], [V, d] -> int64 [...].

    `PART` codes are compared at once: all distances of 4,096 vectors to 262,144 codes would be 4
    GiB. The lowest index wins a tie.
    """
    codes = torch.zeros(vectors.shape[:-1], dtype=torch.int64, device=vectors.device)
    best = torch.full_like(codes, -torch.inf, dtype=vectors.dtype)
    for number, part in enumerate(torch.split(table, PART)):
        score, found = closeness(vectors, part).max(dim=-1)
        codes = torch.where(score > best, found + number * PART, codes)
        best = torch.maximum(score, best)
    return codes


class GsqTokenizer(VqTokenizer):
    """Combine encoder, quantizer and decoder, with the names of ``checkpoint.pt``."""

    ends = (
        "encoder.conv_in",
        "encoder.fianl_layers.2",
        "decoder.conv_in",
        "decoder.final_layers.2",
    )

    def __init__(self, config: GsqConfig) -> None:
        super().__init__()
        self.config: GsqConfig = config
        self.encoder = GsqEncoder(config)
        self.decoder = GsqDecoder(config)
        self.quantizers = GsqQuantizer(config)

    @property
    def codebook(self) -> Tensor:
        return self.quantizers.codebook.weight

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image)  # type: ignore[no-any-return]

    def codes(self, latent: Tensor) -> Tensor:
        """Return int64 codes [N, h, w], or [N, h, w, G], of a latent [N, D, h, w]."""
        return self.quantizers.codes(latent)

    def reconstruct(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)  # type: ignore[no-any-return]

    def decode(self, codes: Tensor) -> Tensor:
        """Return the image [N, 3, H, W], not clamped, of codes [N, h, w] or [N, h, w, G]."""
        return self.reconstruct(self.quantizers.lookup(codes))


def infer_gsq_config(
    tensors: Mapping[str, Tensor], where: str, normalization: Normalization | None = None
) -> GsqConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    They do not tell the normalization.

    Raises:
        ExportError: not a GSQ tokenizer, attention, widths that its norms cannot have, latents that
            its codes do not divide, or nothing tells the normalization.
    """
    blocks = count_items(tensors, r"encoder\.blocks\.(\d+)\.")
    downs = {i for i in range(blocks) if f"encoder.blocks.{i}.conv.weight" in tensors}
    lasts = {i: f"encoder.blocks.{i}.net.6.weight" for i in range(blocks) if i not in downs}
    attention = [key for key in tensors if key.endswith(".qkv_conv.weight")]
    if attention:
        raise ExportError(
            f"has attention: {attention[0]}", where=where, do="no published GSQ tokenizer has it"
        )
    needed = NEEDED | dict.fromkeys(lasts.values() or ["encoder.blocks.0.net.6.weight"], 4)
    require_needed(tensors, needed, "a GSQ tokenizer", where)
    channels, colours = tensors["encoder.conv_in.weight"].shape[:2]
    ends = [i for i in lasts if i + 1 in downs or i + 1 == blocks]
    widths = [tensors[lasts[i]].shape[0] for i in ends]
    require_widths(channels, widths, colours, where, do="use a GSQ tokenizer")
    alike = [i for i in lasts if f"encoder.blocks.{i}.skip.weight" not in tensors]
    latent = tensors["encoder.fianl_layers.2.weight"].shape[0]
    vocab_size, width = tensors["quantizers.codebook.weight"].shape
    if not width or latent % width:
        raise ExportError(
            f"has {latent} latent channels, which codes of {width} do not divide",
            where=where,
            do="check that the file is complete",
        )
    if normalization is None:
        raise ExportError(
            "has no config.yaml, and nothing else tells whether codes are compared by their length "
            "(use_l2_norm)",
            where=where,
            do="put the config.yaml of its training beside it, with use_l2_norm under "
            "quantizer_config, or name the published model that it is",
        )
    with locating(where):
        return GsqConfig(
            channels=channels,
            channels_mult=tuple(w // channels for w in widths),
            num_res_blocks=len(alike) // (len(widths) + 1),
            latent_channels=latent,
            groups=latent // width,
            vocab_size=vocab_size,
            normalization=normalization,
        )


def load_gsq(
    tensors: Mapping[str, Tensor], where: str, normalization: Normalization | None = None
) -> GsqTokenizer:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    `normalization` is that of `infer_gsq_config`.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_gsq_config(tensors, where, normalization)
    return build_strictly(lambda: GsqTokenizer(config), tensors, where)
