"""PAR (Wang et al. 2024): groups of distant tokens at once."""

from __future__ import annotations

from ..base import Family
from .spec import ParSpec
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="par",
    variants=VARIANTS,
    unsized=UNSIZED,
    spec=ParSpec,
    loop="arvg_trt.families.par.loop:ParLoop",
    exporter="arvg_trt.families.par.export:ParExporter",
    # Its sampler loads `model`, also where the trainer left `ema` beside it, as LlamaGen's does.
    evaluated="model",
)
