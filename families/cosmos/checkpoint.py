"""Load the tensors of a Cosmos checkpoint strictly into the model they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.config_json import require_agreement
from ...export.checkpoint.strict import count_items, load_strictly, locating, require_same_keys
from ..shared.convolution import NORM_GROUPS
from .config import FSQ_LEVELS, HAAR, CosmosConfig, CosmosJson
from .model import FSQ, IMAGE_CHANNELS, CosmosTokenizer

MAX_INDICES = 1 << 20
BFLOAT16_EPS = 2.0**-8
BUFFER_NAMES = ("wavelets", "_arange", "_levels", "_basis", "implicit_codebook")


def split_buffers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (parameters, buffers); TorchScript archives also list non-persistent buffers."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        known = (last in BUFFER_NAMES[:2] and owner.endswith("patcher")) or (
            last in BUFFER_NAMES[2:] and owner.endswith("quantizer")
        )
        (buffers if known else parameters)[name] = tensor
    return parameters, buffers


def infer_config(
    tensors: Mapping[str, Tensor],
    where: str,
    config_json: CosmosJson | None = None,
    known: CosmosConfig | None = None,
) -> CosmosConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it, with which shapes must agree; `known` is the model
    that was named. Without a buffer of the FSQ levels, they are the first one's, or the second's.

    Raises:
        ExportError: not a Cosmos image tokenizer, layers that the published ones do not have, or
            nothing tells the levels.
    """
    said = {} if config_json is None else config_json.config_values()
    if config_json is not None and config_json.patch_method not in (None, HAAR):
        raise ExportError(
            f"has patch_method {config_json.patch_method!r}",
            where=where,
            do=f"only {HAAR!r} is supported",
        )
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
    # For a named model the published levels; a checkpoint with others is then refused by name.
    published = None if known is None or latent == z_channels else known.levels or FSQ_LEVELS
    expected = said.get("levels", published)
    with locating(where):
        config = CosmosConfig(
            channels=channels,
            channels_mult=tuple(width // channels for width in widths),
            num_res_blocks=count_items(parameters, r"encoder\.down\.0\.block\.(\d+)\."),
            patch_size=patch_size,
            spatial_compression=patch_size * 2**downs,
            z_channels=z_channels,
            latent_channels=latent,
            levels=infer_levels(buffers, latent, z_channels, where, expected),
        )
    require_agreement(config, said, where)
    return config


def infer_levels(
    buffers: Mapping[str, Tensor], latent: int, z_channels: int, where: str, expected: object
) -> tuple[int, ...]:
    """Return FSQ levels of the archive's buffer, else the expected ones; () if continuous.

    The quantizer of a continuous latent keeps its z channels, and FSQ has as few as it has levels.

    Raises:
        ExportError: levels out of range, or nothing tells them.
    """
    for name, tensor in buffers.items():
        if name.endswith("_levels"):
            levels = tuple(int(v) for v in tensor.flatten())
            return require_levels(levels, name, where)
    if isinstance(expected, tuple):
        return require_levels(expected, "config.json", where) if expected else ()
    if latent == z_channels:
        return ()
    raise ExportError(
        f"has {latent} latent channels, and neither a buffer nor a config.json says levels",
        where=where,
        do='write {"levels": [...]} with those it was trained with into a config.json beside the '
        f"weights; the published models have {list(FSQ_LEVELS)}",
    )


def require_levels(levels: tuple[int, ...], source: str, where: str) -> tuple[int, ...]:
    """Return the levels; raise ExportError for levels that no index counts."""
    if min(levels, default=0) < 2 or math.prod(levels) > MAX_INDICES:
        raise ExportError(
            f"has FSQ levels {levels} in {source}",
            where=where,
            do=f"each must be 2 or more, their product at most {MAX_INDICES}",
        )
    return levels


def check_buffers(buffers: Mapping[str, Tensor], config: CosmosConfig, where: str) -> None:
    """Check that the buffers are the constants that our modules compute themselves."""
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
    """Return what the official modules register under `name`, one of `BUFFER_NAMES`."""
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


def load_cosmos(
    tensors: Mapping[str, Tensor],
    where: str,
    config_json: CosmosJson | None = None,
    known: CosmosConfig | None = None,
) -> CosmosTokenizer:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    `config_json` and `known` are those of `infer_config`. bfloat16 and float16 weights convert
    exactly; float64 ones are rounded.

    Raises:
        ExportError: missing, extra or misshapen keys (named), weights that are not plain floats
            (integers, float8, complex), another model, odd buffers.
    """
    parameters, buffers = split_buffers(tensors)
    config = infer_config(tensors, where, config_json, known)
    check_buffers(buffers, config, where)
    with torch.device("meta"):
        expected = CosmosTokenizer(config).state_dict()
    require_same_keys(expected, parameters, where)  # before anything of that size is made
    model = CosmosTokenizer(config)
    load_strictly(model, parameters, where)
    return model
