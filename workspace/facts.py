"""Facts that the manifest of an earlier stage tells a later one, checked as they are read."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, TypeVar

import msgspec

from ..errors import CalibrationError, WorkspaceError
from .artifacts import Manifest
from .verify import GENERATOR_FILE

ModelKind = Literal["generator", "tokenizer", "custom"]

FP16 = "fp16"  # names the engines of the unquantized graphs
Told = TypeVar("Told")


def told(
    manifest: Manifest, part: Literal["options", "results"], key: str, kind: type[Told]
) -> Told:
    """What a manifest says under a key.

    Raises:
        WorkspaceError: it says nothing there, or nothing of that kind.
    """
    held = getattr(manifest, part)
    try:
        if key not in held:
            raise msgspec.ValidationError("it is not there")
        return msgspec.convert(held[key], kind)
    except msgspec.ValidationError as error:
        raise WorkspaceError(
            f"its manifest has no {part}.{key} that is read: {error}",
            where=manifest.stage,
            do=f"run `arvg-trt {manifest.stage}` again",
        ) from error


def kind_of(exported: Manifest) -> ModelKind:
    """Return what was exported: a generator, an image tokenizer, or a user's own graphs."""
    if GENERATOR_FILE in exported.outputs:
        return "generator"
    return "custom" if "graphs" in exported.results else "tokenizer"


def require_same_export(exported: Manifest, calibrated: Manifest, where: str | None = None) -> None:
    """Raises CalibrationError for statistics of graphs that are not the exported ones any more."""
    odd = [n for n, digest in exported.as_inputs().items() if calibrated.inputs.get(n) != digest]
    if odd:
        raise CalibrationError(
            f"the statistics are of another export: {odd[0]} differs",
            where=where,
            do="run `arvg-trt calibrate` again",
        )


def export_digest(exported: Manifest) -> str:
    """One digest of all that an export wrote."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(exported.outputs.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tokenizer_of(exported: Manifest) -> dict[str, Any]:
    """What the export says of an image tokenizer.

    Raises:
        WorkspaceError: it is of a generator, which the stage does not take yet.
    """
    found: dict[str, Any] | None = exported.results.get("tokenizer")
    if found is None:
        raise WorkspaceError(
            f"{exported.options['model']} generates, it is no image tokenizer",
            do="calibrate, quantize and generate take it",
        )
    return found
