"""Define the family of custom models: a user's ONNX graphs."""

from __future__ import annotations

from ..base import Family, Variant

MODEL = "onnx"  # the model's name in `export` for custom graphs

FAMILY = Family(
    name="custom",
    unsized=Variant(MODEL, "custom", 0, None, (), graphs=()),
    exporter="arvg_trt.families.custom.export:prepare_custom_export",
    source="graphs",
)
