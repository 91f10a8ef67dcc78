"""Find the packages that an extra brings and that are missing; all are named at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .errors import ArvgError

# Packages by the names they are imported by.
EXTRAS: dict[str, tuple[str, ...]] = {
    "export": ("torch", "onnx", "onnx_ir", "onnxscript"),
    "report": ("skimage", "jinja2", "scipy"),
    "search": ("scipy",),
    "distributed": ("ray",),
    "openvino": ("openvino",),
    "mlflow": ("mlflow",),
    "rtx": ("tensorrt_rtx", "polygraphy"),
    # What building a kit needs beside a builder, as on a device that has TensorRT of its own.
    "kit": ("onnx", "onnx_ir", "polygraphy"),
}
INSTALLED_AS = {
    "skimage": "scikit-image",
    "onnx_ir": "onnx-ir",
    "tensorrt_rtx": "tensorrt-rtx",
    "mlflow": "mlflow-skinny",
}
# Packages that come with those above.
BROUGHT = {"ml_dtypes": "export", "matplotlib": "report"}
CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def missing_packages(extras: Sequence[str]) -> dict[str, list[str]]:
    """Return the packages of each extra that are not installed; complete extras are left out."""
    found = {extra: [name for name in EXTRAS[extra] if find_spec(name) is None] for extra in extras}
    return {extra: names for extra, names in found.items() if names}


def require_packages(*extras: str, but: Collection[str] = ()) -> None:
    """Raise ArvgError that names every package of `extras`, `but` some, that is not installed."""
    found = missing_packages(extras)
    missing = {extra: kept for extra, names in found.items() if (kept := without(names, but))}
    if missing:
        raise not_installed(missing)


def without(names: Sequence[str], but: Collection[str]) -> list[str]:
    return [name for name in names if name not in but]


def not_installed(missing: dict[str, list[str]]) -> ArvgError:
    names = [INSTALLED_AS.get(name, name) for found in missing.values() for name in found]
    text = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    verb = "are" if len(names) > 1 else "is"
    do = f"pip install 'arvg-trt[{','.join(missing)}]'"
    if "torch" in names:
        do += f"; before it, for PyTorch without gigabytes of CUDA: {CPU_TORCH}"
    return ArvgError(f"{text} {verb} not installed", do=do)


def extra_of(package: str) -> str | None:
    """Return the first extra that brings a package, None for any other module."""
    held = {name: extra for extra, names in reversed(EXTRAS.items()) for name in names}
    return (held | BROUGHT).get(package)


def installed_builders() -> tuple[str, ...]:
    """Return the back ends whose builder is installed, the one that times kernels here first."""
    return tuple(name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name) is not None)


def builder_release(backend: str) -> str | None:
    """Return the version of an installed builder without loading it; None where nothing says it."""
    try:
        return version(INSTALLED_AS.get(backend, backend))
    except PackageNotFoundError:
        return None
