"""Import TensorRT and TensorRT for RTX; what differs between their versions stays here.

Nothing is imported before it is asked for, so a machine without either package can use the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from ..errors import BuildError
from .devices import driver_facts

Backend = Literal["tensorrt_rtx", "tensorrt"]

_EXTRA: dict[Backend, str] = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
_TITLE: dict[Backend, str] = {"tensorrt_rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class BuilderModule:
    """Wrap a loaded builder package; methods take and give the package's own objects."""

    backend: Backend
    module: ModuleType

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Return whether engines for named GPUs are compiled without having one."""
        return self.backend == "tensorrt_rtx"

    def recorder(self) -> Any:
        """Return a logger that keeps error texts (``errors``) and the layer list (``layers``)."""
        return _recorder(self.module)

    def network(self, builder: Any) -> Any:
        """Return an empty strongly typed network: 10.x must be asked, 11 and RTX always do it."""
        if self.backend == "tensorrt" and int(self.version.split(".")[0]) < 11:
            return builder.create_network(
                1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            )
        return builder.create_network()

    def config(self, builder: Any, compute_capabilities: Sequence[int]) -> Any:
        """Return a builder configuration that lists its layers in the log.

        `compute_capabilities` as 86 for 8.6; TensorRT proper always builds for its own GPU.
        """
        config = builder.create_builder_config()
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if self.ahead_of_time:
            config.num_compute_capabilities = len(compute_capabilities)
            for index, capability in enumerate(compute_capabilities):
                config.set_compute_capability(
                    getattr(self.module.ComputeCapability, f"SM{capability}"), index
                )
        return config


def load_builder(backend: Backend) -> BuilderModule:
    """Import the package of `backend`.

    Raises:
        BuildError: the package is missing or its libraries do not load.
    """
    try:
        return BuilderModule(backend, importlib.import_module(backend))
    except ModuleNotFoundError as error:
        raise BuildError(
            f"{_TITLE[backend]} is not installed ({error})",
            do=f"pip install 'arvg-trt[{_EXTRA[backend]}]'",
        ) from error
    except (ImportError, OSError) as error:
        raise BuildError(
            f"{_TITLE[backend]} is installed and does not load: {error}",
            do=f"pip install --force-reinstall 'arvg-trt[{_EXTRA[backend]}]'",
        ) from error


def version(backend: Backend) -> str:
    """Return the installed version of `backend`; raise BuildError if there is none."""
    return load_builder(backend).version


def device_compute_capability() -> int | None:
    """Return the first GPU's compute capability, 86 for 8.6; None without a GPU."""
    gpus, _, _ = driver_facts()
    return gpus[0].compute_capability if gpus else None


def _recorder(module: ModuleType) -> Any:
    base: Any = module.ILogger

    class Recorder(base):  # type: ignore[misc]  # the package has no type stubs
        """Keep two kinds of message of the many thousands that a verbose build writes."""

        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

    return Recorder()
