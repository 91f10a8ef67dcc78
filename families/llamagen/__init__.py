"""LlamaGen (Sun et al. 2024), class-conditional: token by token in raster order."""

from __future__ import annotations

from ..base import Family
from .spec import LlamagenSpec
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="llamagen",
    variants=VARIANTS,
    unsized=UNSIZED,
    spec=LlamagenSpec,
    loop="arvg_trt.families.shared.llama.loop:LlamaLoop",
    exporter="arvg_trt.families.llamagen.export:LlamagenExporter",
    # Its sampler loads `model`, also where the trainer left `ema` beside it.
    evaluated="model",
)
