"""Checkpoints of convolutional tokenizers: strict loading, and what is refused by which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from arvg_trt.errors import ExportError
from arvg_trt.families.gsq.model import load_gsq
from arvg_trt.families.kl_vae.model import load_kl_vae
from arvg_trt.families.llamagen_vq.model import load_llamagen_vq
from arvg_trt.families.maskgit_vq.model import load_maskgit_vq

from ..gsq.models import GROUPED, SINGLE, random_gsq
from ..mar.models import AUTOENCODER, random_kl_vae
from ..par.models import TOKENIZER as LLAMAGEN_VQ
from ..par.models import official_tokenizer, random_llamagen
from ..rar.models import TOKENIZER as MASKGIT_VQ
from ..rar.models import random_maskgit
from ..var_vqvae.models import TINY, random_vqvae
from .models import Tensors, put, state_of, without


@dataclass(frozen=True)
class Tokenizer:
    """A tiny tokenizer, the tensors of a file that has it, and how they are loaded."""

    config: Any
    random: Callable[[], nn.Module]
    load: Callable[[Tensors, str], Any]
    file: Callable[[Tensors], Tensors] = dict


TOKENIZERS = {
    "maskgit": Tokenizer(MASKGIT_VQ, random_maskgit, load_maskgit_vq),
    "llamagen": Tokenizer(LLAMAGEN_VQ, random_llamagen, load_llamagen_vq, official_tokenizer),
    "kl": Tokenizer(AUTOENCODER, random_kl_vae, load_kl_vae),
    "gsq": Tokenizer(GROUPED, random_gsq, lambda tensors, where: load_gsq(tensors, where, "l2")),
    "gsq of one group": Tokenizer(
        SINGLE, lambda: random_gsq(SINGLE), lambda tensors, where: load_gsq(tensors, where, "l2")
    ),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_loads_strictly(tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    stored = {k: v.to(dtype) for k, v in state_of(tokenizer.random()).items()}
    found = tokenizer.load(tokenizer.file(stored), "here")
    assert found.config == tokenizer.config
    assert found.state_dict().keys() == stored.keys()
    assert all(torch.equal(v, stored[k].float()) for k, v in found.state_dict().items())


CONV_IN = "encoder.conv_in.weight"
CONV = "decoder.up.1.block.0.conv1.weight"
OF_LLAMAGEN = "decoder.conv_blocks.1.res.0.conv1.weight"
OF_GSQ = "decoder.blocks.2.net.6.weight"
CODES = "quantize.embedding.weight"
ONE_CHANNEL = (put(CONV_IN, 32, 1, 3, 3), "takes 1 channels, not 3")
NO_GROUPS = (put(CONV_IN, 24, 3, 3, 3), r"has widths \[24, 32, 64\], not multiples")
UNFIT = {
    "maskgit": [
        (without(CONV), f"missing {CONV}"),
        (without(CODES), "is not a MaskGIT-VQ: no quantize.emb"),
        (without("encoder.down.1.block.0.conv2.weight"), "is not a MaskGIT-VQ: no encoder"),
        (put("encoder.conv_in.bias", 32), r"unexpected encoder\.conv_in\.bias"),
        (put(CONV, 64, 64, 1, 1), rf"{CONV} has shape \[64, 64, 1, 1\], not \[64, 64, 3, 3\]"),
        ONE_CHANNEL,
        NO_GROUPS,
    ],
    "llamagen": [
        (without(OF_LLAMAGEN), f"missing {OF_LLAMAGEN}"),
        (without(CODES), "is not a LlamaGen VQ: no quantize.emb"),
        (without("quant_conv.weight"), "is not a LlamaGen VQ: no quant_conv.weight"),
        (without("encoder.conv_blocks.1.res.0.conv2.weight"), "is not a LlamaGen VQ: no"),
        (put("decoder.conv_blocks.2.extra", 3), r"unexpected decoder\.conv_blocks\.2\.extra"),
        (
            put(OF_LLAMAGEN, 32, 64, 1, 1),
            rf"{OF_LLAMAGEN} has shape \[32, 64, 1, 1\], not \[32, 64, 3, 3\]",
        ),
        (put("post_quant_conv.weight", 16, 8, 1, 1), r"post_quant_conv\.weight has shape"),
        ONE_CHANNEL,
        NO_GROUPS,
    ],
    "kl": [
        (without(CONV), f"missing {CONV}"),
        (without("quant_conv.weight"), "is not a KL autoencoder: no quant_conv"),
        (put("decoder.up.1.attn.0.norm.weight", 64), r"unexpected decoder\.up\.1\.attn\.0"),
        (put(CONV, 64, 64, 1, 1), rf"{CONV} has shape \[64, 64, 1, 1\], not \[64, 64, 3, 3\]"),
        (put("quant_conv.weight", 4, 8, 1, 1), r"quant_conv\.weight has shape \[4, 8, 1, 1\]"),
        ONE_CHANNEL,
    ],
    "gsq": [
        (without(OF_GSQ), f"missing {OF_GSQ}"),
        (without("quantizers.codebook.weight"), "is not a GSQ tokenizer: no quantizers.co"),
        (without("encoder.blocks.2.net.6.weight"), "is not a GSQ tokenizer: no encoder.bl"),
        (put("encoder.zero", 1), r"unexpected encoder\.zero"),
        (put(OF_GSQ, 32, 32, 1, 1), rf"{OF_GSQ} has shape \[32, 32, 1, 1\], not \[64, 64, 3, 3\]"),
        ONE_CHANNEL,
        NO_GROUPS,
        (put("encoder.blocks.5.qkv_conv.weight", 9, 3, 1, 1), "has attention: encoder.blocks.5"),
        (put("quantizers.codebook.weight", 64, 3), "8 latent channels, which codes of 3 do not"),
        (put("quantizers.codebook.weight", 64, 0), "8 latent channels, which codes of 0 do not"),
    ],
}


@pytest.mark.parametrize(
    ("tokenizer", "change", "message"),
    [(name, *row) for name, rows in UNFIT.items() for row in rows],
    indirect=["tokenizer"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    tokenizer: Tokenizer, change: Callable[[Tensors], None], message: str
) -> None:
    state = state_of(tokenizer.random())
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        tokenizer.load(state, "tokenizer.bin")
    assert str(caught.value).startswith("tokenizer.bin: ")


@pytest.mark.parametrize(
    ("tokenizer", "other", "message"),
    [
        ("maskgit", "var", r"conv_out\.weight has shape .* not .*; and \d+ more"),
        ("llamagen", "var", r"is not a LlamaGen VQ: no encoder\.conv_blocks"),
        ("llamagen", "maskgit", r"is not a LlamaGen VQ: no encoder\.conv_blocks"),
        ("kl", "var", "a tokenizer with a codebook"),
        ("kl", "maskgit", "is not a KL autoencoder: no quant_conv"),
        ("gsq", "maskgit", "is not a GSQ tokenizer"),
    ],
    indirect=["tokenizer"],
)
def test_the_tokenizers_of_other_families_are_refused(
    tokenizer: Tokenizer, other: str, message: str
) -> None:
    model = random_vqvae(TINY) if other == "var" else random_maskgit()
    with pytest.raises(ExportError, match=message):
        tokenizer.load(state_of(model), "vae.pth")
