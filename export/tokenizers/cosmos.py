"""Cosmos image tokenizers (NVIDIA): DI (discrete, FSQ) and CI (continuous) at 8x8 and 16x16.

Own modules with the official parameter names; written from the published architecture
(github.com/NVIDIA/Cosmos-Tokenizer, ``networks/configs.py``, ``modules/layers2d.py``).
Images are [N, 3, H, W] in [-1, 1]; H and W are multiples of the spatial compression.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from .blocks import NORM_GROUPS, Downsample, MidBlock, ResnetBlock, Upsample, group_norm
from .cosmos_config import FSQ_LEVELS, CosmosConfig

IMAGE_CHANNELS = 3
FSQ_EPS = 1e-3
MAX_INDICES = 1 << 20
BFLOAT16_EPS = 2.0**-8


def haar_weight(patch_size: int) -> Tensor:
    """Sign pattern of the multi-level Haar transform as a convolution kernel.

    Returns [3*p*p, 3, p, p] with entries +-1 and 0: channel ``12*band_2 + 3*band_1 + rgb`` for
    p = 4 (band 1 is the finest level), bands in the order LL, LH, HL, HH. The forward transform
    is this over p*p (DC gain 1), the inverse is its transpose with unit coefficients.
    """
    bands = torch.tensor(
        [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]],
        dtype=torch.float32,
    )
    patterns = torch.ones(1, 1, 1)
    for _ in range(int(math.log2(patch_size))):
        patterns = torch.stack([torch.kron(band, p) for band in bands for p in patterns])
    colours = torch.eye(IMAGE_CHANNELS)
    weight = torch.einsum("bhw,oc->bochw", patterns, colours)
    return weight.reshape(-1, IMAGE_CHANNELS, patch_size, patch_size)


class Patcher(nn.Module):
    """Haar wavelet analysis: [N, 3, H, W] -> [N, 3*p*p, H/p, W/p]."""

    weight: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("weight", haar_weight(patch_size) / patch_size**2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=self.patch_size)


class UnPatcher(nn.Module):
    """Haar wavelet synthesis: [N, 3*p*p, h, w] -> [N, 3, h*p, w*p]."""

    weight: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("weight", haar_weight(patch_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, stride=self.patch_size)


class Level(nn.Module):
    """One resolution: residual blocks, then an optional resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels)
            for i in range(blocks)
        )
        if down:
            self.downsample = Downsample(out_channels)
        if up:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Image [N, 3, H, W] -> features [N, z_channels, H/s, W/s]."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = config.widths
        inputs = (config.channels, *widths[:-1])
        self.patcher = Patcher(config.patch_size)
        self.conv_in = nn.Conv2d(
            IMAGE_CHANNELS * config.patch_size**2, config.channels, kernel_size=3, padding=1
        )
        self.down = nn.ModuleList(
            Level(i, o, config.num_res_blocks, down=n < config.num_resamplings)
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = MidBlock(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.patcher(x))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Features [N, z_channels, h, w] -> image [N, 3, h*s, w*s], not clamped.

    ``up.{i}`` is resolution level i, run from the highest i (lowest resolution) to 0.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = config.widths
        inputs = (*widths[1:], widths[-1])
        first_up = len(widths) - config.num_resamplings
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = MidBlock(widths[-1])
        self.up = nn.ModuleList(
            Level(i, o, config.num_res_blocks + 1, up=n >= first_up)
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(
            widths[0], IMAGE_CHANNELS * config.patch_size**2, kernel_size=3, padding=1
        )
        self.unpatcher = UnPatcher(config.patch_size)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.unpatcher(self.conv_out(F.silu(self.norm_out(h))))  # type: ignore[no-any-return]


class FSQ(nn.Module):
    """Finite scalar quantization (arXiv 2309.15505) in the Cosmos variant; no parameters.

    Latents are [N, d, h, w] for d levels, codes lie in [-1, 1], indices are int32 [N, h, w] in
    0 ... prod(levels)-1. Index arithmetic is integer: a half-precision sum over the basis
    (up to 12800) would not be exact.
    """

    levels: Tensor
    half_width: Tensor
    basis: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        as_int = torch.tensor(levels, dtype=torch.int32)
        half_range = (as_int.double() - 1) * (1 + FSQ_EPS) / 2
        offset = torch.where(as_int % 2 == 0, 0.5, 0.0).double()
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), dim=0).int()
        constants = {
            "levels": as_int,
            "half_width": as_int // 2,
            "basis": basis,
            "half_range": half_range.float(),
            "offset": offset.float(),
            "shift": torch.atanh(offset / half_range).float(),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.reshape(1, -1, 1, 1), persistent=False)

    def bound(self, latent: Tensor) -> Tensor:
        """Squash to the open interval that rounds onto the grid: [N, d, h, w] -> [N, d, h, w]."""
        return torch.tanh(latent + self.shift) * self.half_range - self.offset

    def indices(self, latent: Tensor) -> Tensor:
        """[N, d, h, w] float32 -> int32 [N, h, w]."""
        digits = torch.round(self.bound(latent)).int() + self.half_width
        return (digits * self.basis).sum(dim=1, dtype=torch.int32)

    def codes(self, indices: Tensor) -> Tensor:
        """int32 [N, h, w] -> [N, d, h, w] in [-1, 1]; exact in every float type."""
        digits = indices.unsqueeze(1) // self.basis % self.levels
        return (digits - self.half_width).float() / self.half_width.float()

    def straight_through(self, latent: Tensor) -> Tensor:
        """Codes of `latent` with the gradient of the bounded value (training only)."""
        bounded = self.bound(latent)
        rounded = bounded + (torch.round(bounded) - bounded).detach()
        return rounded / self.half_width


class CosmosTokenizer(nn.Module):
    """The whole model, with the parameter names of ``autoencoder.jit``."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, kernel_size=1)
        self.quantizer = FSQ(config.levels) if config.discrete else None

    def encode(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> latent [N, latent_channels, H/s, W/s], before quantization."""
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """Codes (DI) or latent (CI) [N, latent_channels, h, w] -> image [N, 3, h*s, w*s]."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


BUFFER_NAMES = ("wavelets", "_arange", "_levels", "_basis", "implicit_codebook")


def split_buffers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, buffers): TorchScript archives also list the model's non-persistent buffers."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        known = (last in BUFFER_NAMES[:2] and owner.endswith("patcher")) or (
            last in BUFFER_NAMES[2:] and owner.endswith("quantizer")
        )
        (buffers if known else parameters)[name] = tensor
    return parameters, buffers


def infer_config(tensors: Mapping[str, Tensor], where: str) -> CosmosConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    Raises:
        ExportError: not a Cosmos image tokenizer, or layers that the published ones do not have.
    """
    parameters, buffers = split_buffers(tensors)
    needed = (
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "decoder.conv_out.weight",
        "quant_conv.weight",
        "encoder.down.0.block.0.conv1.weight",
    )
    absent = [key for key in needed if key not in parameters]
    if absent:
        raise ExportError(
            f"is not a Cosmos image tokenizer: no {', '.join(absent)}",
            where=where,
            do="check the model name, and that encoder and decoder are both there",
        )
    attention = [k for k in parameters if re.match(r"(en|de)coder\.(down|up)\.\d+\.attn\.", k)]
    if attention:
        raise ExportError(
            f"has attention outside the middle block: {attention[0]}",
            where=where,
            do="no published Cosmos image tokenizer has it",
        )
    levels = count_items(parameters, r"encoder\.down\.(\d+)\.")
    lasts = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(levels)]
    odd = [key for key in (*needed, *lasts) if key not in parameters or parameters[key].ndim != 4]
    if odd:
        raise ExportError(
            f"is not a Cosmos image tokenizer: no convolution {', '.join(odd)}",
            where=where,
            do="check the model name, and that the file is complete",
        )
    channels, patched = parameters["encoder.conv_in.weight"].shape[:2]
    widths = [parameters[key].shape[0] for key in lasts]
    patch_size = math.isqrt(patched // IMAGE_CHANNELS)
    if patched != IMAGE_CHANNELS * patch_size**2 or patch_size.bit_count() != 1:
        raise ExportError(
            f"takes {patched} channels in encoder.conv_in, not 3*p*p for a power of two p",
            where=where,
            do="the published models have patches of 4, 48 channels",
        )
    if not channels or any(w % NORM_GROUPS or w % channels for w in (channels, *widths)):
        raise ExportError(
            f"has widths {[channels, *widths]}, not multiples of {NORM_GROUPS} and of the first",
            where=where,
            do="no published Cosmos image tokenizer has them",
        )
    downs = count_items(parameters, r"encoder\.down\.(\d+)\.downsample\.conv\.weight")
    ups = count_items(parameters, r"decoder\.up\.(\d+)\.upsample\.conv\.weight")
    if downs != ups:
        raise ExportError(
            f"has {downs} downsamplings and {ups} upsamplings", where=where, do="use another file"
        )
    latent = parameters["quant_conv.weight"].shape[0]
    z_channels = parameters["encoder.conv_out.weight"].shape[0]
    try:
        return CosmosConfig(
            channels=channels,
            channels_mult=tuple(width // channels for width in widths),
            num_res_blocks=count_items(parameters, r"encoder\.down\.0\.block\.(\d+)\."),
            patch_size=patch_size,
            spatial_compression=patch_size * 2**downs,
            z_channels=z_channels,
            latent_channels=latent,
            levels=infer_levels(buffers, latent, z_channels, where),
        )
    except ExportError as error:
        # The configuration does not know which file it came from.
        raise ExportError(error.what, where=where, do=error.do) from error


def infer_levels(
    buffers: Mapping[str, Tensor], latent: int, z_channels: int, where: str
) -> tuple[int, ...]:
    """FSQ levels: from the archive's buffer; else CI has as many latent as z channels, DI fewer."""
    for name, tensor in buffers.items():
        if name.endswith("_levels"):
            levels = tuple(int(v) for v in tensor.flatten())
            if min(levels, default=0) < 2 or math.prod(levels) > MAX_INDICES:
                raise ExportError(
                    f"has FSQ levels {levels} in {name}",
                    where=where,
                    do=f"each must be 2 or more, their product at most {MAX_INDICES}",
                )
            return levels
    if latent == z_channels:
        return ()
    if latent != len(FSQ_LEVELS):
        raise ExportError(
            f"has {latent} latent channels and no FSQ levels",
            where=where,
            do=f"the published DI models have {len(FSQ_LEVELS)}",
        )
    return FSQ_LEVELS


def count_items(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for key in tensors if (m := re.match(pattern, key))})


def check_buffers(buffers: Mapping[str, Tensor], config: CosmosConfig, where: str) -> None:
    """The buffers must be the constants that our modules compute themselves."""
    for name, tensor in buffers.items():
        wanted = official_buffer(name.rpartition(".")[2], config)
        # Published archives hold the floats in bfloat16; integers must be equal.
        slack = BFLOAT16_EPS if tensor.is_floating_point() else 0.0
        if tensor.shape != wanted.shape or not torch.allclose(
            tensor.double(), wanted.double(), rtol=slack, atol=0.0
        ):
            raise ExportError(
                f"{name} is not what this model computes with",
                where=where,
                do="no published Cosmos image tokenizer differs here",
            )


def official_buffer(name: str, config: CosmosConfig) -> Tensor:
    """What the official modules register under `name`, one of `BUFFER_NAMES`."""
    if name == "wavelets":
        return torch.full((2,), 0.5**0.5)
    if name == "_arange":
        return torch.arange(2)
    if not config.discrete:
        return torch.empty(0)
    fsq = FSQ(config.levels)
    if name == "_levels":
        return fsq.levels.flatten()
    if name == "_basis":
        return fsq.basis.flatten()
    every = torch.arange(math.prod(config.levels), dtype=torch.int32)
    return fsq.codes(every.reshape(1, -1, 1))[0, :, :, 0].T


def load_cosmos(tensors: Mapping[str, Tensor], where: str) -> CosmosTokenizer:
    """A float32 model in eval mode from a checkpoint's tensors, loaded strictly.

    bfloat16 and float16 weights convert exactly; float64 ones are rounded.

    Raises:
        ExportError: missing, extra or misshapen keys (named), weights that are not plain floats
            (integers, float8, complex), another model, odd buffers.
    """
    parameters, buffers = split_buffers(tensors)
    config = infer_config(tensors, where)
    check_buffers(buffers, config, where)
    with torch.device("meta"):
        model = CosmosTokenizer(config)
    expected = model.state_dict()
    problems = [f"missing {k}" for k in expected.keys() - parameters.keys()]
    problems += [f"unexpected {k}" for k in parameters.keys() - expected.keys()]
    problems += [
        f"{k} has shape {list(parameters[k].shape)}, not {list(v.shape)}"
        for k, v in expected.items()
        if k in parameters and parameters[k].shape != v.shape
    ]
    problems += [
        f"{k} holds {str(v.dtype).removeprefix('torch.')}, not floats of 16 bits or more"
        for k, v in parameters.items()
        if k in expected and not (v.is_floating_point() and v.itemsize > 1)
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ExportError(listed + more, where=where, do="use the checkpoint of this model")
    fresh = CosmosTokenizer(config)
    fresh.load_state_dict({k: v.float() for k, v in parameters.items()}, strict=True, assign=True)
    return fresh.eval().requires_grad_(False)
