"""Find, load and set up the execution providers of ONNX Runtime.

Those for CUDA and TensorRT are libraries inside the package `onnxruntime-gpu`; that for TensorRT
for RTX is a plug-in of a package of its own, which is registered once a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BundleError
from ...workspace.files import own_folder, user_cache
from ..devices import CUDA_DRIVER, RTX_MODULE, RTX_PACKAGES, Gpu, rtx_packages, this_device
from .library import load_onnxruntime
from .placement import CUDA, TENSORRT, TENSORRT_RTX, Placement, Problem, rtx_takes

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = load_onnxruntime()
# What the plug-in is linked with, beyond what it brings: both are parts of the driver.
RTX_LIBRARIES = (CUDA_DRIVER, "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
PROVIDER_LIBRARY = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
MISSING = re.compile(r"^(\S+?): cannot open shared object file")
ASSIGNMENT = "get_provider_graph_assignment_info"  # of a session, from ONNX Runtime 1.24 on
GUIDE = "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html"


def compiled_providers() -> tuple[str, ...]:
    """Return the providers that ONNX Runtime was compiled with, the preferred ones first."""
    return tuple(ort.get_available_providers())


def provider_problem(provider: str, gpu: Gpu) -> Problem | None:
    """Return why a provider does not run on a GPU of this machine; None: it does."""
    if provider == TENSORRT_RTX:
        return assignment_problem() or rtx_gpu_problem(gpu) or rtx_problem()
    return assignment_problem() or library_problem(provider)


def assignment_problem() -> Problem | None:
    """Return that this ONNX Runtime would fall back to the CPU in silence; None: it would not."""
    if hasattr(ort.InferenceSession, ASSIGNMENT):
        return None
    return Problem(
        f"ONNX Runtime {ort.__version__} cannot say which provider runs each node",
        "install ONNX Runtime 1.24 or newer, which needs Python 3.11",
    )


@cache
def library_problem(provider: str) -> Problem | None:
    """Return why a provider that lies inside ONNX Runtime does not load."""
    if provider not in compiled_providers():
        return Problem(
            "the installed ONNX Runtime is for the CPU alone",
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )
    preload_libraries()
    path = Path(str(ort.__file__)).parent / "capi" / PROVIDER_LIBRARY[provider]
    if sys.platform != "linux" or not path.is_file():
        return None  # opening the session will tell
    missing = missing_library(str(path))
    if missing is None:
        return None
    do = f"install CUDA and cuDNN as {GUIDE} says"
    if missing.startswith(("libnvinfer", "libnvonnxparser")):
        do = "install TensorRT 10, which this ONNX Runtime was compiled with"
    return Problem(f"{provider} cannot load {missing}", do)


@cache
def preload_libraries() -> None:
    """Load CUDA's libraries of the packages nvidia-*, which the loader does not search."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()


def missing_library(path: str) -> str | None:
    """Return the library that a library needs and that is not there; None: all are."""
    try:
        ctypes.CDLL(path)
    except OSError as error:
        match = MISSING.match(str(error))
        # Other reasons, such as a symbol that ONNX Runtime's own process provides, are no lack.
        return match[1] if match else None
    return None


def rtx_gpu_problem(gpu: Gpu) -> Problem | None:
    """Return that the plug-in does not take a GPU of this compute capability; None: it does."""
    if rtx_takes(gpu.compute_capability):
        return None
    return Problem(
        f"ONNX Runtime's provider of TensorRT for RTX takes no {gpu.sm} ({gpu.name})",
        "run ONNX Runtime engines, or graphs with CUDA, on this GPU",
    )


def rtx_problem() -> Problem | None:
    """Return why the plug-in provider of TensorRT for RTX does not run here; None: it does."""
    found = registered_rtx()
    return found if isinstance(found, Problem) else None


@cache
def registered_rtx() -> tuple[Any, ...] | Problem:
    """Register the plug-in provider of TensorRT for RTX, and return its devices.

    A package that is not installed, a library of the driver that is missing, and a driver without
    a GPU for it are problems of their own.
    """
    if rtx_packages()[0] is None:
        return Problem(
            f"the package {RTX_PACKAGES[0]} is not installed", "pip install 'arvg-trt[edge-rtx]'"
        )
    for library in RTX_LIBRARIES:
        if missing_library(library) is not None:
            return Problem(
                f"ONNX Runtime's provider of TensorRT for RTX needs {library}, which is missing",
                "install the NVIDIA driver, with its libraries of management (NVML)",
            )
    again = f"pip install --force-reinstall {RTX_PACKAGES[0]}"
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plug_in

        ort.register_execution_provider_library(TENSORRT_RTX, plug_in.get_library_path())
    except REGISTRATION_ERRORS as error:
        line = " ".join(str(error).split())[:300]
        return Problem(f"the plug-in {RTX_MODULE} cannot be registered: {line}", again)
    devices = tuple(each for each in ort.get_ep_devices() if each.ep_name == TENSORRT_RTX)
    if not devices:
        return Problem(
            "ONNX Runtime's provider of TensorRT for RTX lists no GPU of this machine",
            "update the NVIDIA driver; it takes GPUs of sm86, sm89 and from sm120 on",
        )
    return devices


ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in vars(ort.capi.onnxruntime_pybind11_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
REGISTRATION_ERRORS: tuple[type[Exception], ...] = (
    *(ImportError, OSError, RuntimeError),
    *ORT_ERRORS,
)


def add_provider(options: Any, placement: Placement) -> list[Any]:
    """Set up a provider in a session's `options`; return the `providers` that opening takes.

    The plug-in's devices go into the options, and the list is empty.
    """
    settings = provider_options(placement)
    if placement.provider == TENSORRT_RTX:
        options.add_provider_for_devices([rtx_device(placement.index)], settings)
        return []
    return [(placement.provider, settings)]


def rtx_device(index: int) -> Any:
    """Return the plug-in's device of a GPU; it lists those alone that it takes, in their order.

    Raises:
        BundleError: it does not list this one.
    """
    devices = registered_rtx()
    taken = [gpu.index for gpu in this_device().gpus if rtx_gpu_problem(gpu) is None]
    if isinstance(devices, Problem) or index not in taken[: len(devices)]:
        what = devices.what if isinstance(devices, Problem) else "the plug-in does not list it"
        raise BundleError(what, where=f"cuda:{index}", do="use another --device")
    return devices[taken.index(index)]


def provider_options(placement: Placement) -> dict[str, str]:
    """Return a provider's options.

    TensorRT for RTX captures CUDA graphs itself and replays them wherever values lie. Those of
    the other providers replay with the addresses of the first run, and values here move from one
    run to the next, so they are not asked for.
    """
    device = {"device_id": str(placement.index)}
    if placement.provider == CUDA:
        # TF32 has 10 bits of mantissa: FP32 graphs would no longer be a reference.
        return device | {"use_tf32": "0"}
    if placement.provider == TENSORRT:
        folder = str(cache_folder(placement))
        return device | {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    if placement.provider == TENSORRT_RTX:
        return {
            "enable_cuda_graph": str(int(placement.static)),
            "nv_persistent_context_memory": "1",  # taken once a session, not in every run
            "nv_runtime_cache_path": str(cache_folder(placement)),
        }
    return {}


def cache_folder(placement: Placement) -> Path:
    """Return the folder of what a provider compiles on this machine, made if it is not there.

    It is one for each provider, GPU, driver and version: what one of them made fits no other.

    Raises:
        WorkspaceError: other users may change what lies there.
    """
    machine = this_device()
    gpu = machine.gpus[placement.index]
    version = machine.rtx_version if placement.provider == TENSORRT_RTX else machine.tensorrt
    parts = (gpu.name, gpu.sm, f"cuda{machine.driver}", f"v{version}")
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    kind = placement.provider.removesuffix("ExecutionProvider").lower()
    folder = own_folder(user_cache() / kind) / name
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder
