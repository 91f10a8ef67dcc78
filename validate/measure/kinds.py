"""The measurement that a kind of model gets, and what is refused before there is one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ...errors import bounded
from ...recipe.validate import ValidateOptions
from ...samples.base import SampleSource
from ...samples.images import skipped_text
from ...samples.sources import check_options
from ...workspace.facts import Exported, ModelKind
from ..quality.open import check_networks
from .custom_measurement import CustomMeasurement
from .generator_measurement import GeneratorMeasurement
from .measurement import Measurement
from .tokenizer_measurement import TokenizerMeasurement


def check_validation(kind: ModelKind, options: ValidateOptions) -> None:
    """Check all that needs no exported model.

    Raises:
        CalibrationError: an option of other kinds of models, no images, unusable ones, or no file
            of a feature network.
    """
    check_options(kind, options)
    check_networks(options)


def open_measurement(
    model: Exported, options: ValidateOptions, seen: Collection[int] = ()
) -> Measurement:
    """Open the samples that a model is validated on; `seen` are classes that calibration has seen.

    Raises:
        CalibrationError: none given, or they cannot be used.
        GenerationError: a label out of range.
        RecipeError: a feature network that cannot be used.
    """
    if model.kind == "generator":
        return GeneratorMeasurement.open(model, options, seen)
    if model.kind == "custom":
        return CustomMeasurement.open(model, options)
    return TokenizerMeasurement.open(model, options)


def doubts(measurement: Measurement, calibrated: Collection[str]) -> Iterator[str]:
    """Yield which held-out samples are left out, and which calibration has seen."""
    skipped = [file for source in measurement.sources for file in source.skipped]
    if skipped:
        yield skipped_text(skipped)
    repeated = leaked(measurement.sources, calibrated)
    if repeated:
        named = bounded(repeated, measurement.noun)
        yield f"validated on calibration {measurement.noun}: {named}"


def leaked(sources: Collection[SampleSource], calibrated: Collection[str]) -> list[str]:
    """Return the names of inputs that calibration has seen too."""
    return sorted({name for source in sources for name in source.names} & {*calibrated})
