"""A family of another package: a tiny transformer that makes one token after another."""

from __future__ import annotations

from arvg_trt.families.base import Family, Variant

from .spec import ToySpec

FILES = (("toy.pt", "vq.pt"),)
GRAPHS = ("encoder", "decoder", "step", "full")
FAMILY = Family(
    name="toy",
    unsized=Variant("toy", "toy", 0, None, FILES, graphs=GRAPHS),
    spec=ToySpec,
    loop="arvg_toy.loop:ToyLoop",
    exporter="arvg_toy.export:ToyExporter",
)
