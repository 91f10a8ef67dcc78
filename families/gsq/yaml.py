"""Read the normalization of a GSQ checkpoint from its config.yaml; its tensors do not tell it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from ...errors import ExportError
from .config import Normalization

FLAGS = ("use_l1_norm", "use_l2_norm", "force_1d_clip", "use_uniform_init")


def read_normalization(folder: Path) -> Normalization | None:
    """Return what the official `config.yaml` says of the quantizer; None without one.

    Raises:
        ExportError: the file is not YAML, or configures no quantizer, or says anything but true or
            false of its normalization.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        quantizer = find_quantizer(yaml.safe_load(path.read_bytes()))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ExportError("is not YAML", where=str(path), do="download it again") from error
    if quantizer is None:
        raise ExportError(
            "has no quantizer_config", where=str(path), do="take the one of the checkpoint"
        )
    odd = [key for key in FLAGS if not isinstance(quantizer.get(key, False), bool)]
    if odd:
        raise ExportError(
            f"has {odd[0]} {quantizer[odd[0]]!r}", where=str(path), do="write true or false"
        )
    if quantizer.get("use_l1_norm"):
        return "l1"
    if quantizer.get("use_l2_norm"):
        return "l2"
    clips = quantizer.get("force_1d_clip") and quantizer.get("use_uniform_init")
    return "clip" if clips else "none"


def find_quantizer(value: object) -> Mapping[str, object] | None:
    """Return the mapping `quantizer_config`, at whatever depth."""
    if not isinstance(value, Mapping):
        return None
    found = value.get("quantizer_config")
    if isinstance(found, Mapping):
        return found
    return next((inner for v in value.values() if (inner := find_quantizer(v)) is not None), None)
