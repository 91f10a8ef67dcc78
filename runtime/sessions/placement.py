"""Choose where a session runs: the CPU, or a GPU through one of ONNX Runtime's providers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ...errors import BundleError
from ..devices import CPU, Device, this_device

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
OPENVINO = "OpenVINO"  # no provider of ONNX Runtime, but a library of its own for the CPU
# Providers that run a graph on a GPU, the first that works is taken. CUDA's computes each node as
# the graph says; those of TensorRT build an engine first, in seconds (RTX) or minutes.
FOR_GRAPHS = (CUDA, TENSORRT_RTX, TENSORRT)
# Of the back ends that build engines, by their names in manifests: what users call them, and the
# provider that opens what they build.
TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
PROVIDERS: Mapping[str, str] = {"tensorrt": TENSORRT, "tensorrt_rtx": TENSORRT_RTX}

# The plug-in 0.5.0 takes sm86, sm89 and all from sm120 on, though TensorRT for RTX compiles for
# sm75 and sm80 too (its header tensorrt_rtx_provider_options.h, IsComputeCapabilitySupported).
RTX_CAPABILITIES = (86, 89)
RTX_FROM = 120

DEVICE = re.compile(r"cuda(?::(\d{1,4}))?", re.IGNORECASE)
DEVICES = "cpu, cuda:0 (or another number) or auto"


@dataclass(frozen=True, slots=True)
class Placement:
    """Say which provider runs a session, and on which GPU.

    Where what was to run on the GPU runs on the CPU, opening fails, unless `allow_fallback`.
    `static`: all shapes of the graphs are fixed, so that a GPU's launches can be recorded once.
    `problem` says why it is the CPU though this machine has a GPU and any device would do.
    """

    provider: str = CPU
    index: int = 0
    allow_fallback: bool = False
    static: bool = False
    problem: str | None = None

    @property
    def on_gpu(self) -> bool:
        return self.provider not in (CPU, OPENVINO)

    @property
    def text(self) -> str:
        """Return it as reports have it: `cpu`, `cpu, OpenVINO` or `cuda:0, CUDA...`."""
        if self.on_gpu:
            return f"cuda:{self.index}, {self.provider}"
        return "cpu" if self.provider == CPU else f"cpu, {self.provider}"


ON_CPU = Placement()
BY_OPENVINO = Placement(OPENVINO)


@dataclass(frozen=True, slots=True)
class Problem:
    """Say why a provider does not run here, and what to do about it, where that is known."""

    what: str
    do: str | None


def rtx_takes(capability: int) -> bool:
    """Return whether the plug-in of TensorRT for RTX takes a GPU of a compute capability."""
    return capability in RTX_CAPABILITIES or capability >= RTX_FROM


def unopened(targets: Iterable[str]) -> list[str]:
    """Return those of the targets, such as sm75, whose RTX engines no provider opens."""
    return [sm for sm in targets if not rtx_takes(int(sm.removeprefix("sm")))]


def unopened_text(targets: Iterable[str]) -> str:
    """Return in one line for which of the targets no provider opens RTX engines; "" for none."""
    lacking = unopened(targets)
    if not lacking:
        return ""
    return (
        f"no provider of ONNX Runtime opens engines of TensorRT for RTX on {' '.join(lacking)}: "
        "there run graphs with CUDA, or an engine of ONNX Runtime"
    )


def gpu_of(device: str, machine: Device) -> int | None:
    """Return the number of the GPU that a `--device` names; None: the CPU, or no GPU for `auto`.

    Raises:
        BundleError: no name of a device, or a GPU that is not there.
    """
    if device.lower() == "cpu" or (device.lower() == "auto" and not machine.gpus):
        return None
    if device.lower() == "auto":
        return 0
    match = DEVICE.fullmatch(device)
    if match is None:
        raise BundleError(f"{device[:40]!r} is no device", where="--device", do=f"give {DEVICES}")
    index = int(match[1] or 0)
    if index < len(machine.gpus):
        return index
    if not machine.gpus:
        what = machine.driver_problem or "this machine has no GPU"
        raise BundleError(what, where=f"--device {device}", do=driver_advice(machine))
    names = ", ".join(f"cuda:{gpu.index} ({gpu.name}, {gpu.sm})" for gpu in machine.gpus)
    raise BundleError("no such GPU", where=f"--device {device}", do=f"this machine has {names}")


def driver_advice(machine: Device) -> str:
    """Return what a user can do on a machine where no GPU is seen."""
    if machine.driver is None and "missing" in (machine.driver_problem or ""):
        return "install the NVIDIA driver, or use --device cpu"
    return "`nvidia-smi` shows what the driver sees; or use --device cpu"


def place_graphs(
    device: str = "cpu", *, allow_fallback: bool = False, machine: Device | None = None
) -> Placement:
    """Return where graphs run on a `device`: cpu, cuda:0, or auto for a GPU if one can be used.

    Where `auto` leaves a GPU for the CPU, the placement says why.

    Raises:
        BundleError: no name of a device, a GPU that is not there, or no provider that runs it.
    """
    machine = machine or this_device()
    index = gpu_of(device, machine)
    if index is None:
        return ON_CPU
    from .providers import provider_problem

    problems = []
    for provider in FOR_GRAPHS:
        problem = provider_problem(provider, machine.gpus[index])
        if problem is None:
            return Placement(provider, index, allow_fallback)
        problems.append(problem)
    reasons = "; ".join(dict.fromkeys(problem.what for problem in problems))
    what, do = f"no provider runs on {machine.gpus[index].name}: {reasons}", problems[0].do
    if device.lower() == "auto":
        return Placement(problem=f"{what} ({do})")
    raise BundleError(what, where=f"--device {device}", do=f"{do}; or use --device cpu")


def place_engine(
    provider: str,
    capabilities: Collection[int],
    device: str = "auto",
    *,
    allow_fallback: bool = False,
    machine: Device | None = None,
) -> Placement | Problem:
    """Return where an engine runs that `provider` opens, built for GPUs of these `capabilities`.

    A problem says whether the driver, the package or the right GPU is missing.

    Raises:
        BundleError: no name of a device, or a GPU that is not there.
    """
    machine = machine or this_device()
    if device.lower() == "cpu":
        return Problem("the CPU was asked for", None)
    if not machine.gpus:
        return Problem(machine.driver_problem or "this machine has no GPU", None)
    chosen = gpu_of(device, machine)
    fitting = [gpu.index for gpu in machine.gpus if gpu.compute_capability in capabilities]
    if device.lower() == "auto":
        chosen = fitting[0] if fitting else 0
    assert chosen is not None  # there is a GPU, and the CPU was not asked for
    gpu = machine.gpus[chosen]
    if chosen not in fitting:
        return Problem(f"cuda:{chosen} is {gpu.name}, {gpu.sm}", f"build with --target {gpu.sm}")
    from .providers import provider_problem

    return provider_problem(provider, gpu) or Placement(provider, chosen, allow_fallback)
