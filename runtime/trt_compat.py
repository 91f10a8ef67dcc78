"""Import TensorRT and TensorRT for RTX, and say which package is missing.

Nothing is imported before it is asked for, so a machine without either package can use the rest.
Polygraphy builds with them.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from ..errors import ArvgError, BuildError
from ..extras import installed_builders, missing_packages, not_installed
from .devices import driver_facts
from .sessions.placement import TITLES

Backend = Literal["tensorrt_rtx", "tensorrt"]

JETSON = "aarch64"  # the machine by which Python knows it, as other devices of ARM

_EXTRA: dict[Backend, str] = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}


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


def install_command(backend: Backend, option: str = "", machine: str | None = None) -> str:
    """Return the command that installs a builder on a `machine`, without a name on this one.

    TensorRT's libraries lie on NVIDIA's own index; what other indexes have fetches them from there,
    and fails behind a mirror with a page of text. A Jetson has the TensorRT of its JetPack, and no
    wheel of that index fits it.
    """
    if backend == "tensorrt" and (machine or platform.machine()) == JETSON:
        return f"use the TensorRT of JetPack itself, and pip install {option}'arvg-trt[kit]'"
    index = "--extra-index-url https://pypi.nvidia.com " if backend == "tensorrt" else ""
    return f"pip install {option}{index}'arvg-trt[{_EXTRA[backend]}]'"


def require_kit(backend: str | None = None) -> None:
    """Raise ArvgError for packages that building a bundle's kit takes and that are missing.

    Where no builder is there either, one command brings both: by the `backend` that was asked for,
    else by TensorRT for RTX, or what a Jetson takes.
    """
    missing = missing_packages(["kit"])
    if not missing:
        return
    if installed_builders():
        raise not_installed(missing)
    jetson = platform.machine() == JETSON
    kind: Backend = "tensorrt" if backend == "tensorrt" or jetson else "tensorrt_rtx"
    raise ArvgError(
        "building from a bundle takes a builder, and none is installed",
        do=install_command(kind)
        + ("" if backend or jetson else ", which is enough for an RTX GPU"),
    )


def load_builder(backend: Backend) -> BuilderModule:
    """Import the package of `backend`.

    Raises:
        ArvgError: the package or Polygraphy is missing.
        BuildError: its libraries do not load.
    """
    if find_spec("polygraphy") is None:
        do = install_command(backend)
        raise ArvgError("Polygraphy, which builds engines, is not installed", do=do)
    return load_module(backend)


def load_module(backend: Backend) -> BuilderModule:
    """Import the package of `backend` itself; Polygraphy may be missing.

    Raises:
        ArvgError: it is missing.
        BuildError: its libraries do not load.
    """
    try:
        module = importlib.import_module(backend)
    except ModuleNotFoundError as error:
        raise ArvgError(
            f"{TITLES[backend]} is not installed ({error})",
            do=install_command(backend),
        ) from error
    except (ImportError, OSError) as error:
        raise BuildError(
            f"{TITLES[backend]} is installed and does not load: {error}",
            do=install_command(backend, "--force-reinstall "),
        ) from error
    return BuilderModule(backend, module, str(module.__version__))


def version(backend: Backend) -> str:
    """Return the installed version of `backend`; raise ArvgError if there is none."""
    return load_builder(backend).version


def device_compute_capability() -> int | None:
    """Return the first GPU's compute capability, 86 for 8.6; None without a GPU."""
    gpus, _, _ = driver_facts()
    return gpus[0].compute_capability if gpus else None
