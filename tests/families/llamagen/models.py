"""Tiny LlamaGens with weights in which every part of the arithmetic shows."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from arvg_trt.families.llamagen.model import LlamagenTransformer
from arvg_trt.families.llamagen_vq.model import LlamagenVq
from arvg_trt.families.shared.llama.config import LlamaConfig

from ..par import models as par_models
from ..par.models import redrawn
from ..shared.models import TinyExported

SMALL = LlamaConfig(depth=2, width=32, heads=2, hidden=48, length=16, num_classes=5, vocab_size=48)
FILES = ("c2i_B_256.pt", "vq_ds16_c2i.pt")
JSON = par_models.JSON
SEEN = SMALL.length - 1
TinyLlamagen = TinyExported[LlamagenTransformer, LlamagenVq]


def random_llamagen(config: LlamaConfig = SMALL, seed: int = 0) -> LlamagenTransformer:
    return redrawn(LlamagenTransformer(config), seed)


def write_checkpoint(
    folder: Path, transformer: dict[str, Tensor] | None, tokenizer: dict[str, Tensor] | None
) -> Path:
    """Write the files as published for B, with heads and tokens of an image in config.json."""
    return par_models.write_checkpoint(folder, transformer, tokenizer, FILES)
