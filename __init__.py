"""Export, calibrate, quantize, build and validate image tokenizers and generators.

Everything here is loaded on first use, so that `import arvg_trt` takes no time: `docs/python.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Workspace, compare_reports, load_report, run_recipe, verify_bundle
    from .errors import ArvgError
    from .recipe.file import load_recipe
    from .recipe.recipe import Recipe
    from .runtime.generator import Generator
    from .runtime.tokenizer import ImageTokenizer

_HOMES = {
    "ArvgError": "errors",
    "Generator": "runtime.generator",
    "ImageTokenizer": "runtime.tokenizer",
    "Recipe": "recipe.recipe",
    "Workspace": "api",
    "compare_reports": "api",
    "load_recipe": "recipe.file",
    "load_report": "api",
    "run_recipe": "api",
    "verify_bundle": "api",
}

__all__ = [
    "ArvgError",
    "Generator",
    "ImageTokenizer",
    "Recipe",
    "Workspace",
    "compare_reports",
    "load_recipe",
    "load_report",
    "run_recipe",
    "verify_bundle",
]


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name == "__version__":
        return importlib.import_module(".workspace.stage", __name__).tool_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
