"""Define a recipe: a model, a workspace, and the options of every stage."""

from __future__ import annotations

from typing import Annotated, Literal

from .base import Options, check_name, require_not_empty
from .build import BuildOptions
from .calibrate import CalibrateOptions
from .descriptions import says
from .quantize import QuantizeOptions
from .validate import ValidateOptions


class Recipe(Options, frozen=True, kw_only=True):
    """Hold everything that `arvg-trt run` needs."""

    model: Annotated[
        str, says("Name of a model that `arvg-trt models` lists, or onnx: your own graphs.")
    ]
    workspace: Annotated[str, says("Folder that the stages write to.")]
    name: Annotated[str, says("Name of this quantization; a workspace holds many.")]
    checkpoint: Annotated[
        str | None, says("File, folder or Hugging Face id. Without it, the weights that ship.")
    ] = None
    weights: Annotated[
        Literal["ema", "model"] | None,
        says(
            "Averaged or last weights of a trainer's snapshot. Without it, as officially evaluated."
        ),
    ] = None
    graphs: Annotated[
        tuple[str, ...],
        says("ONNX files of the model onnx, in the order that they run.", flag="graph"),
    ] = ()
    title: Annotated[
        str | None,
        says("What the model onnx is called in reports and bundles. Without it, as its files."),
    ] = None
    calibrate: Annotated[CalibrateOptions, says("What the model is calibrated on.")] = (
        CalibrateOptions()
    )
    quantize: Annotated[QuantizeOptions, says("Which formats its sites get.")] = QuantizeOptions()
    build: Annotated[tuple[BuildOptions, ...], says("Engines, a table for each back end.")] = (
        BuildOptions(),
    )
    validate: Annotated[ValidateOptions, says("What the result is measured on.")] = (
        ValidateOptions()
    )
    schema: Annotated[Literal["arvg-trt/recipe/v1"], says("Version of this form.")] = (
        "arvg-trt/recipe/v1"
    )

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.title is not None:
            check_name(self.title, "title")
        require_not_empty(self, "model", "workspace", "checkpoint", "graphs", "title")
