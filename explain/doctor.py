"""Say what this machine can build and run, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ArvgError, IntegrityError, WorkspaceError
from ..extras import EXTRAS, INSTALLED_AS
from ..runtime.bundle.trust import required_keys
from ..runtime.devices import RTX_PACKAGES, Device, Gpu, this_device
from ..runtime.sessions.library import WHEELS, UnusableRuntime, load_onnxruntime
from ..runtime.sessions.placement import CUDA, TENSORRT, TENSORRT_RTX
from ..runtime.sessions.processors import may_saturate, processor_name
from ..runtime.trt_compat import Backend, install_command, load_builder, load_module
from ..workspace.files import OTHER_CACHE, cache_problem, user_cache

# What runs on a GPU, and by which of ONNX Runtime's providers.
RUNS = {"graphs": CUDA, "RTX engines": TENSORRT_RTX, "TensorRT engines": TENSORRT}


Use = Literal["build", "kit", "run"]
State = Literal["ok", "missing", "problem"]
PROBE_BYTES = 2**20
# A device runs what was built elsewhere: there the first block may lack everything.
USES: dict[Use, str] = {
    "build": "To export, quantize, validate and build:",
    "kit": "To build from a bundle, on the device:",
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
    return [*build_rows(), *kit_rows(), *running]


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


def kit_rows() -> list[Check]:
    """Return a check for each package that building a bundle's kit takes, and for each builder."""
    rows = []
    for name in EXTRAS["kit"]:
        package = INSTALLED_AS.get(name, name)
        found = installed(package)
        detail = found or "for any GPU: pip install 'arvg-trt[kit]'"
        rows.append(row("ok" if found else "missing", package, detail, "kit"))
    rtx, other = install_command("tensorrt_rtx"), install_command("tensorrt")
    cures: dict[Backend, str] = {
        "tensorrt_rtx": f"for an RTX GPU: {rtx}, which is enough alone",
        "tensorrt": f"for any GPU: {other}",
    }
    for backend, cure in cures.items():
        try:
            builder = load_module(backend)
        except ArvgError as error:
            absent = isinstance(error.__cause__, ModuleNotFoundError)
            rows.append(row("missing", backend, cure if absent else str(error), "kit"))
        else:
            rows.append(row("ok", backend, builder.version, "kit"))
    return rows


def python_row() -> Check:
    return row("ok", "python", platform.python_version())


def cache_row() -> Check:
    """Say where what is opened of bundles is kept, or why nothing can be.

    Paths do not tell that a place is read-only or full: a file is written there, and removed.
    """
    try:
        problem = cache_problem() or write_problem(user_cache())
    except WorkspaceError as error:
        return row("problem", "cache", str(error))
    if problem is not None:
        return row("problem", "cache", f"{problem} ({OTHER_CACHE})")
    return row("ok", "cache", str(user_cache()))


def write_problem(folder: Path) -> str | None:
    """Return why no file can be written to a folder, or to the one that it is to be made in."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return f"{there}: nothing can be written here: {error.strerror}"
    return None


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
            problem = problem_of(provider, gpu)
            state: State = "missing" if problem else "ok"
            rows.append(row(state, f"cuda:{gpu.index} {use}", problem or provider))
    return rows


def problem_of(provider: str, gpu: Gpu) -> str | None:
    """Return why a provider does not run on a GPU, and what to do; None: it does."""
    try:
        from ..runtime.sessions.providers import provider_problem
    except UnusableRuntime:
        return "needs onnxruntime, which does not load"
    problem = provider_problem(provider, gpu)
    return None if problem is None else f"{problem.what}: {problem.do}"


def onnxruntime_row() -> Check:
    """Check for one wheel: those for CPU and GPU overwrite each other's files."""
    found = [name for name in WHEELS if installed(name)]
    if len(found) == 2:
        return row(
            "problem",
            "onnxruntime",
            "both onnxruntime and onnxruntime-gpu are installed: pip uninstall both, install one",
        )
    try:
        module = load_onnxruntime()
    except UnusableRuntime as error:
        state: State = "problem" if found else "missing"
        return row(state, "onnxruntime", f"{error.what}: {error.do}")
    name = found[0] if found else "onnxruntime"
    return row("ok", name, version(name) if found else str(module.__version__))


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
