"""Say what this machine can build and run, and what is missing."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ArvgError, IntegrityError, WorkspaceError
from ..runtime.bundle.trust import required_keys
from ..runtime.devices import RTX_PACKAGES, Device, this_device
from ..runtime.sessions.placement import CUDA, TENSORRT, TENSORRT_RTX
from ..runtime.sessions.processors import may_saturate, processor_name
from ..runtime.sessions.providers import provider_problem
from ..runtime.trt_compat import load_builder
from ..workspace.files import OTHER_CACHE, cache_problem, user_cache

# What runs on a GPU, and by which of ONNX Runtime's providers.
RUNS = {"graphs": CUDA, "RTX engines": TENSORRT_RTX, "TensorRT engines": TENSORRT}


Use = Literal["build", "run"]
State = Literal["ok", "missing", "problem"]
# A device runs what was built elsewhere: there the first block may lack everything.
USES: dict[Use, str] = {
    "build": "To export, quantize, validate and build:",
    "run": "To run engines and bundles:",
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that this machine has or lacks; ``detail`` says which one, or what to do.

    ``use`` says what it is for.
    """

    use: Use
    state: State
    what: str
    detail: str


def doctor_rows() -> list[Check]:
    """Return what this machine can build and run, and what is missing; one use after the other."""
    cpu = [python_row(), onnxruntime_row(), openvino_row()]
    running = [*cpu, *gpu_rows(this_device()), cache_row(), key_row()]
    return [*build_rows(), *running]


def build_rows() -> list[Check]:
    """Return a check for each package of the stages, for each builder, and for the disk."""
    rows = []
    for package, extra, use in (
        ("torch", "export", "export of checkpoints"),
        ("onnx", "export", "export, FP16 copies"),
        ("scikit-image", "report", "SSIM and sample photographs"),
        ("jinja2", "report", "HTML reports"),
    ):
        found = installed(package)
        detail = found or f"for {use}: pip install 'arvg-trt[{extra}]'"
        rows.append(row("ok" if found else "missing", package, detail, "build"))
    for backend in ("tensorrt_rtx", "tensorrt"):
        try:
            builder = load_builder(backend)
        except ArvgError as error:
            rows.append(row("missing", backend, str(error), "build"))
        else:
            how = "compiles for named GPUs" if builder.ahead_of_time else "builds for this GPU"
            rows.append(row("ok", backend, f"{builder.version}, {how}", "build"))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state: State = "ok" if free > 2 else "problem"
    return [*rows, row(state, "free disk here", f"{free:.1f} GiB", "build")]


def python_row() -> Check:
    return row("ok", "python", platform.python_version())


def cache_row() -> Check:
    """Say where what is opened of bundles is kept, or why nothing can be."""
    try:
        problem = cache_problem()
    except WorkspaceError as error:
        return row("problem", "cache", str(error))
    if problem is not None:
        return row("problem", "cache", f"{problem} ({OTHER_CACHE})")
    return row("ok", "cache", str(user_cache()))


def key_row() -> Check:
    """Say which keys this device requires bundles to be signed by."""
    try:
        names = [name for names in required_keys() for name, _ in names]
    except IntegrityError as error:
        return row("problem", "required keys", str(error))
    return row("ok", "required keys", ", ".join(names) or "none: any bundle is opened")


def gpu_rows(device: Device) -> list[Check]:
    """Return a check for each GPU and for each provider that runs an engine or a graph on it."""
    if not device.gpus:
        detail = f"{device.driver_problem}; the CPU runs graphs and ONNX Runtime's engines"
        provider = device.rtx_provider
        plug_in = provider or "for engines on an RTX GPU: pip install 'arvg-trt[edge-rtx]'"
        return [
            row("missing", "GPU", detail),
            row("ok" if provider else "missing", RTX_PACKAGES[0], plug_in),
        ]
    rows = []
    for gpu in device.gpus:
        memory = gpu.memory_bytes / 2**30
        detail = f"{gpu.name}, {gpu.sm}, {memory:.0f} GiB, driver for CUDA {device.driver}"
        rows.append(row("ok", f"cuda:{gpu.index}", detail))
        for use, provider in RUNS.items():
            problem = provider_problem(provider, gpu)
            what = f"cuda:{gpu.index} {use}"
            if problem is None:
                rows.append(row("ok", what, provider))
            else:
                rows.append(row("missing", what, f"{problem.what}: {problem.do}"))
    return rows


def onnxruntime_row() -> Check:
    """Check for one wheel: those for CPU and GPU overwrite each other's files."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(found) == 2:
        return row(
            "problem",
            "onnxruntime",
            "both onnxruntime and onnxruntime-gpu are installed: pip uninstall both, install one",
        )
    if not found:
        return row("missing", "onnxruntime", "pip install onnxruntime")
    return row("ok", found[0], version(found[0]))


def openvino_row() -> Check:
    """Say whether OpenVINO is here, and whether its INT8 products can be trusted."""
    found = installed("openvino")
    if found is None:
        return row("missing", "openvino", "for the CPU: pip install 'arvg-trt[openvino]'")
    if may_saturate():
        detail = f"{found}; products of INT8 may saturate on this processor, which lacks VNNI"
        return row("problem", "openvino", detail)
    return row("ok", "openvino", f"{found}, on {processor_name()}")


def installed(package: str) -> str | None:
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def row(state: State, what: str, detail: str, use: Use = "run") -> Check:
    return Check(use=use, state=state, what=what, detail=detail)
