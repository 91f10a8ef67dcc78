"""Import ONNX Runtime, or say in one line that it is not installed or damaged."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

from ...errors import ArvgError

# The wheels for the CPU and for GPUs bring one module; removing one of two leaves half of it.
WHEELS = ("onnxruntime-gpu", "onnxruntime")


class UnusableRuntime(ArvgError, ImportError):
    """Report that ONNX Runtime is not installed, or does not load."""


def load_onnxruntime() -> ModuleType:
    """Return the module of ONNX Runtime.

    Raises:
        UnusableRuntime: it is not installed, or files of it are missing.
    """
    try:
        import onnxruntime
        import onnxruntime.capi.onnxruntime_pybind11_state
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            what = "onnxruntime is not installed"
            raise UnusableRuntime(what, do="pip install onnxruntime") from error
        raise broken(f"it has no module {error.name}") from error
    except (ImportError, OSError) as error:
        raise broken(" ".join(str(error).split())[:200]) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise broken("it has no InferenceSession")
    found: ModuleType = onnxruntime
    return found


def broken(reason: str) -> UnusableRuntime:
    """Return the error of an installation that lacks files; pip would call it satisfied."""
    found = next((name for name in WHEELS if is_installed(name)), None)
    cure = f"pip install --force-reinstall {found}" if found else "pip install onnxruntime"
    return UnusableRuntime(f"onnxruntime is installed in part and does not load: {reason}", do=cure)


def is_installed(wheel: str) -> bool:
    try:
        distribution(wheel)
    except PackageNotFoundError:
        return False
    return True
