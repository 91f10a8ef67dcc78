"""Find the packages that an extra brings and that are missing; all are named at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import ArvgError

# Packages by the names they are imported by.
EXTRAS: dict[str, tuple[str, ...]] = {
    "export": ("torch", "onnx", "onnx_ir", "onnxscript"),
    "report": ("skimage", "jinja2"),
    "search": ("scipy",),
    "distributed": ("ray",),
    "rtx": ("tensorrt_rtx", "polygraphy"),
}
INSTALLED_AS = {"skimage": "scikit-image", "onnx_ir": "onnx-ir", "tensorrt_rtx": "tensorrt-rtx"}
# Packages that come with those above.
BROUGHT = {"ml_dtypes": "export", "matplotlib": "report"}


def missing_packages(extras: Sequence[str]) -> dict[str, list[str]]:
    """Return the packages of each extra that are not installed; complete extras are left out."""
    found = {extra: [name for name in EXTRAS[extra] if find_spec(name) is None] for extra in extras}
    return {extra: names for extra, names in found.items() if names}


def require_packages(*extras: str) -> None:
    """Raise ArvgError that names every package of `extras` that is not installed."""
    missing = missing_packages(extras)
    if missing:
        raise not_installed(missing)


def not_installed(missing: dict[str, list[str]]) -> ArvgError:
    names = [INSTALLED_AS.get(name, name) for found in missing.values() for name in found]
    text = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    verb = "are" if len(names) > 1 else "is"
    return ArvgError(
        f"{text} {verb} not installed", do=f"pip install 'arvg-trt[{','.join(missing)}]'"
    )


def extra_of(package: str) -> str | None:
    """Return the extra that brings a package, None for any other module."""
    held = {name: extra for extra, names in EXTRAS.items() for name in names}
    return (held | BROUGHT).get(package)


def installed_builders() -> tuple[str, ...]:
    """Return the back ends whose builder is installed, the one that times kernels here first."""
    return tuple(name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name) is not None)
