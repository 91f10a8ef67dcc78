"""Import TensorRT and TensorRT for RTX, and say which package is missing.

Nothing is imported before it is asked for, so a machine without either package can use the rest.
Polygraphy builds with them.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from ..errors import BuildError

Backend = Literal["tensorrt_rtx", "tensorrt"]

_EXTRA: dict[Backend, str] = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
_TITLE: dict[Backend, str] = {"tensorrt_rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}
_CUDA_DRIVER = "libcuda.so.1"
_CUDA_ATTRIBUTE_MAJOR, _CUDA_ATTRIBUTE_MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class BuilderModule:
    """Wrap a loaded builder package."""

    backend: Backend
    module: ModuleType
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """Return whether engines for named GPUs are compiled without having one."""
        return self.backend == "tensorrt_rtx"


def load_builder(backend: Backend) -> BuilderModule:
    """Import the package of `backend`.

    Raises:
        BuildError: the package or Polygraphy is missing, or its libraries do not load.
    """
    install = f"pip install 'arvg-trt[{_EXTRA[backend]}]'"
    if find_spec("polygraphy") is None:
        raise BuildError("Polygraphy, which builds engines, is not installed", do=install)
    try:
        module = importlib.import_module(backend)
    except ModuleNotFoundError as error:
        raise BuildError(
            f"{_TITLE[backend]} is not installed ({error})",
            do=install,
        ) from error
    except (ImportError, OSError) as error:
        raise BuildError(
            f"{_TITLE[backend]} is installed and does not load: {error}",
            do=f"pip install --force-reinstall 'arvg-trt[{_EXTRA[backend]}]'",
        ) from error
    return BuilderModule(backend, module, str(module.__version__))


def version(backend: Backend) -> str:
    """Return the installed version of `backend`; raise BuildError if there is none."""
    return load_builder(backend).version


def device_compute_capability() -> int | None:
    """Return the first GPU's compute capability, 86 for 8.6; None without a GPU."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    numbers = []
    for attribute in (_CUDA_ATTRIBUTE_MAJOR, _CUDA_ATTRIBUTE_MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        numbers.append(value.value)
    return 10 * numbers[0] + numbers[1]
