"""Find, load and set up the execution providers of ONNX Runtime."""

from __future__ import annotations

import onnxruntime as ort


def compiled_providers() -> tuple[str, ...]:
    """Return the providers that ONNX Runtime was compiled with, the preferred ones first."""
    return tuple(ort.get_available_providers())
