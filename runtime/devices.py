"""Describe this machine: its GPUs, the driver, and the packages that run a graph or an engine here.

The driver and TensorRT are asked through their own libraries, other packages are read from their
metadata. So a machine without a GPU, or without any of the packages, says why.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import msgspec

CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Distributions of the plug-in provider of TensorRT for RTX; both bring the module of RTX_MODULE.
RTX_PACKAGES = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
# The provider brings its own TensorRT for RTX: the file's name has the version, on Windows
# (tensorrt_rtx_1_7.dll) only the first two numbers of it.
RTX_LIBRARY = re.compile(r"libtensorrt_rtx\.so\.(\d+(?:\.\d+)+)|tensorrt_rtx_(\d+(?:_\d+)+)\.dll")
# The package puts its libraries into a folder of their own, which the loader does not search.
TENSORRT_FOLDER = "tensorrt_libs"
# ONNX Runtime's provider opens TensorRT 10 alone: another beside it runs nothing here.
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11")
CPU = "CPUExecutionProvider"

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Gpu(msgspec.Struct, frozen=True):
    """Describe a GPU as the driver does; `compute_capability` is 86 for 8.6."""

    index: int
    name: str
    compute_capability: int
    memory_bytes: int

    @property
    def sm(self) -> str:
        return f"sm{self.compute_capability}"


class Device(msgspec.Struct, frozen=True):
    """Describe a machine as far as it decides what runs there.

    `driver` is the newest CUDA version that the driver serves, such as "13.0"; `driver_problem`
    says in one line why there is no GPU. `providers` are those that ONNX Runtime was compiled with
    (CUDA's may still fail to load); `rtx_provider` is the version of the installed plug-in provider
    of TensorRT for RTX, `rtx_version` that of the TensorRT for RTX it brings, `tensorrt` that of
    the TensorRT that can be opened.
    """

    system: str
    machine: str
    gpus: tuple[Gpu, ...]
    driver: str | None
    driver_problem: str | None
    providers: tuple[str, ...]
    rtx_provider: str | None
    rtx_version: str | None
    tensorrt: str | None


@cache
def this_device() -> Device:
    """Return what this machine has; it is asked once a process, and nothing raises."""
    gpus, driver, problem = driver_facts()
    rtx_provider, rtx_version = rtx_packages()
    return Device(
        system=platform.system(),
        machine=platform.machine(),
        gpus=gpus,
        driver=driver,
        driver_problem=problem,
        providers=onnxruntime_providers(),
        rtx_provider=rtx_provider,
        rtx_version=rtx_version,
        tensorrt=tensorrt_version(),
    )


class _DriverError(Exception):
    """Carry the reason why the driver gives no GPU."""


def driver_facts(
    library: str = CUDA_DRIVER,
) -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """Return the GPUs of a driver's library, its CUDA version, and why there is no GPU."""
    driver: str | None = None
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        reason = " ".join(str(error).split())
        missing = "cannot open shared object" in reason or "Could not find module" in reason
        name = library.rpartition("/")[2]
        return (), None, f"no NVIDIA driver: {name} is missing" if missing else reason
    try:
        _call(cuda, "cuInit", ctypes.c_uint(0))
        version = ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        count = ctypes.c_int()
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    except _DriverError as error:
        return (), driver, str(error)
    return gpus, driver, None if gpus else "the NVIDIA driver lists no GPU"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=10 * numbers[0] + numbers[1],
        memory_bytes=memory.value,
    )


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function of the driver; raise _DriverError with the driver's own words."""
    try:
        status = getattr(cuda, name)(*arguments)
    except AttributeError as error:
        raise _DriverError(f"the NVIDIA driver is damaged: it has no {name}") from error
    if status:
        raise _DriverError(f"the NVIDIA driver fails: {name} says {_error_text(cuda, status)}")


def _error_text(cuda: ctypes.CDLL, status: int) -> str:
    """Return an error as `CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected`."""
    parts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        function = getattr(cuda, name, None)  # absent in the oldest drivers
        if function is not None and not function(status, ctypes.byref(text)) and text.value:
            parts.append(text.value.decode(errors="replace"))
    return ", ".join(parts) or f"error {status}"


def onnxruntime_providers() -> tuple[str, ...]:
    """Return the providers that ONNX Runtime was compiled with; none where it does not load."""
    try:
        from .sessions.providers import compiled_providers
    except ImportError:
        return ()
    return compiled_providers()


def rtx_packages() -> tuple[str | None, str | None]:
    """Return the versions of the plug-in provider and of the TensorRT for RTX that it brings."""
    for package in RTX_PACKAGES:
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        matches = (RTX_LIBRARY.fullmatch(file.name) for file in found.files or ())
        versions = [m[1] or m[2].replace("_", ".") for m in matches if m]
        return found.version, max(versions, key=len, default=None)
    return None, None


def tensorrt_version() -> str | None:
    """Return the version of the TensorRT that can be opened, of its package or of the system."""
    spec = find_spec(TENSORRT_FOLDER)
    folders = ["", *(f"{folder}/" for folder in (spec and spec.submodule_search_locations) or ())]
    for library in TENSORRT_LIBRARIES:
        for folder in folders:
            try:
                number = int(ctypes.CDLL(folder + library).getInferLibVersion())
            except (OSError, AttributeError):
                continue
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None
