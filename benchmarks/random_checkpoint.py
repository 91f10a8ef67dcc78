"""Write checkpoints of published sizes: official names, shapes and form, random weights.

The transformer's file is written without ever being in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..families.kl_vae.config import KlVaeConfig
from ..families.kl_vae.model import KlVae
from ..families.llamagen.model import LlamagenTransformer
from ..families.llamagen_vq.config import VQ_16
from ..families.llamagen_vq.model import LlamagenVq
from ..families.mar.model import MarTransformer
from ..families.maskgit_vq.config import MaskgitVqConfig
from ..families.maskgit_vq.model import MaskgitVq
from ..families.par.model import ParTransformer
from ..families.rar.model import RarTransformer
from ..families.var.config import VarConfig
from ..families.var.model import VarTransformer
from ..families.var_vqvae.config import VarVqvaeConfig
from ..families.var_vqvae.model import VarVqvae
from ..families.variants import shipped_checkpoint
from ..runtime.family import Variant

SPREAD = 0.1  # deviation of tables, biases and modulations
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Form:
    """Say how a family's two files are made.

    `within` is the key that the published files keep their state dict under, if any.
    """

    transformer: Callable[[Any], nn.Module]
    tokenizer: Callable[[Any], nn.Module]
    buffers: Callable[[Any], Mapping[str, Tensor]] = lambda config: {}
    within: str | None = None


def checkpoint_of(entry: Variant, folder: Path) -> Path:
    """Return the folder of a model's shipped weights; of random ones where none are shipped.

    These are written to `folder`, unless it is there.
    """
    if entry.hub is None:
        return Path(shipped_checkpoint(entry))
    if not folder.is_dir():
        write_checkpoint(folder, entry, seed=0)
    return folder


def weights_of(entry: Variant) -> str:
    """Say whose weights `checkpoint_of` returns, for a heading."""
    return "its own weights" if entry.hub is None else "random weights"


def read_tensors(path: Path, within: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file that `checkpoint_of` names, as float32."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        loaded: dict[str, Any] = torch.load(path, weights_only=True)
        tensors = loaded if within is None else loaded[within]
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}


def load_transformer(checkpoint: Path, entry: Variant) -> nn.Module:
    """Return the transformer of a checkpoint, as it computes in PyTorch."""
    form = FORMS[entry.family]
    with torch.device("meta"):
        model = form.transformer(entry.config)
    tensors = read_tensors(checkpoint / entry.files[0][0], form.within)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def write_checkpoint(folder: Path, entry: Variant, seed: int, dtype: str = "float32") -> None:
    """Write the transformer's and the tokenizer's files under their official names.

    `dtype` is that of the transformer.
    """
    form = FORMS[entry.family]
    folder.mkdir(parents=True)
    transformer, tokenizer = (folder / name for name in entry.files[0])
    write_transformer(transformer, form, entry.config, seed, getattr(torch, dtype))
    torch.manual_seed(seed)
    tensors = form.tokenizer(entry.config).state_dict()
    torch.save(tensors if form.within is None else {form.within: tensors}, tokenizer)


def write_transformer(path: Path, form: Form, config: Any, seed: int, dtype: torch.dtype) -> None:
    """Reserve the file with empty storages, then draw the weights into its mapped pages."""
    with torch.device("meta"):
        shapes = form.transformer(config).state_dict()
    constants = form.buffers(config)
    with FakeTensorMode():
        empty = {
            key: torch.empty(t.shape, dtype=t.dtype if key in constants else dtype)
            for key, t in shapes.items()
        }
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(empty if form.within is None else {form.within: empty}, path)
    generator = torch.Generator().manual_seed(seed)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        loaded = torch.load(path, mmap=True, weights_only=True)
    tensors: dict[str, Tensor] = loaded if form.within is None else loaded[form.within]
    for key, tensor in tensors.items():
        if key in constants:
            tensor.copy_(constants[key])
        elif key.endswith("scale_mul_1H11"):
            tensor.fill_(1.4)
        elif key.endswith("norm.weight"):
            tensor.normal_(mean=1, std=SPREAD, generator=generator)
        else:
            is_weight = tensor.ndim == 2 and "emb" not in key
            spread = tensor.shape[1] ** -0.5 if is_weight else SPREAD
            tensor.normal_(std=spread, generator=generator)


def var_buffers(config: VarConfig) -> dict[str, Tensor]:
    tiny = VarTransformer(replace(config, depth=1, width=1, heads=1, hidden=1))
    found = {"lvl_1L": tiny.lvl_1L, "attn_bias_for_masking": tiny.attn_bias_for_masking}
    zeros = torch.zeros(config.width)
    return found | {f"blocks.{i}.attn.zero_k_bias": zeros for i in range(config.depth)}


@torch.no_grad()
def var_vqvae(config: VarConfig) -> nn.Module:
    model = VarVqvae(VarVqvaeConfig(patch_nums=config.patch_nums))
    model.quant_conv.weight.mul_(4)  # the codes that random latents take are then many
    model.quantize.embedding.weight.mul_(0.5)
    return model


@torch.no_grad()
def maskgit_vq(_: object) -> nn.Module:
    model = MaskgitVq(MaskgitVqConfig())
    model.encoder.conv_out.weight.mul_(4)
    return model


FORMS: Mapping[str, Form] = {
    "var": Form(VarTransformer, var_vqvae, var_buffers),
    "rar": Form(RarTransformer, maskgit_vq),
    "par": Form(ParTransformer, lambda config: LlamagenVq(VQ_16), within="model"),
    "llamagen": Form(LlamagenTransformer, lambda config: LlamagenVq(VQ_16), within="model"),
    "mar": Form(MarTransformer, lambda config: KlVae(KlVaeConfig()), within="model"),
}
