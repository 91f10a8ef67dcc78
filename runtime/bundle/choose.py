"""Choose what of a bundle runs on a device, and say of every step why or why not.

An engine that was built for exactly this GPU comes first, then one that its back end takes here,
then one that is built here from the bundle's ONNX, then that ONNX on CUDA, then the CPU's engines:
OpenVINO's where it is installed, then ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from ...extras import builder_release
from ..devices import Device, Gpu
from ..folders import same_release
from ..sessions.placement import CUDA, PROVIDERS, TITLES, Problem, unopened, unopened_text
from ..sessions.processors import may_saturate
from ..sessions.providers import provider_problem
from ..trt_compat import install_command
from .layout import BundleFacts, TargetGroup

Step = Literal["exact engine", "compatible engine", "build here", "CUDA", "CPU"]
# Says why a provider does not run on a GPU of this machine; None if it does.
ProviderProblem = Callable[[str, Gpu], Problem | None]
# Says the version of a builder that is installed here; None if nothing does.
BuilderRelease = Callable[[str], "str | None"]


class ChainStep(msgspec.Struct, frozen=True, kw_only=True):
    """Say whether one way to run a bundle is open here; `group` is what it would run."""

    step: Step
    group: str
    opens: bool
    reason: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the steps in their order; the first that opens is taken.

    `builder` is the back end that would build the bundle's kit here; None if none can.
    """

    steps: tuple[ChainStep, ...]
    builder: str | None = None

    @property
    def chosen(self) -> ChainStep | None:
        return next((step for step in self.steps if step.opens), None)

    def without(self, failed: ChainStep, reason: str) -> Choice:
        """Return the choice that is left after a step failed, and why it did."""
        closed = msgspec.structs.replace(failed, opens=False, reason=reason)
        steps = tuple(closed if step is failed else step for step in self.steps)
        return Choice(steps=steps, builder=self.builder)


def choose(
    facts: BundleFacts,
    device: Device,
    gpu: Gpu | None,
    builders: Sequence[str] = (),
    problem_of: ProviderProblem = provider_problem,
    release_of: BuilderRelease = builder_release,
    saturates: Callable[[], bool] = may_saturate,
) -> Choice:
    """Return the ways to run a bundle on a GPU of a device, or without one on its CPU.

    `builders` are the back ends whose builder is installed here.
    """
    engines = [group for group in facts.groups if group.kind in TITLES]
    steps = []
    for step in ("exact engine", "compatible engine"):
        for group in engines:
            if (step == "compatible engine") is is_of_another_gpu(group, gpu):
                problem = engine_problem(group, device, gpu, problem_of)
                reason = problem or fit_text(group, gpu)
                steps.append(chain_step(step, group, problem is None, reason))
    kit, builder = facts.group("kit"), None
    if kit is not None:
        builder = usable_builder(device, gpu, builders, problem_of, release_of)
        problem = None if builder else build_problem(device, gpu, builders, problem_of, release_of)
        reason = problem or f"{titled(builder or '', release_of)} builds it once, into the cache"
        steps.append(chain_step("build here", kit, problem is None, reason))
        problem = cuda_problem(device, gpu, problem_of)
        reason = problem or "ONNX Runtime runs the graphs in FP16, Q/DQ in floats"
        steps.append(chain_step("CUDA", kit, problem is None, reason))
    cpu = facts.group("onnxruntime")
    for group in (each for each in facts.groups if each.kind == "openvino"):
        problem = openvino_problem(release_of, beside=cpu is not None, saturates=saturates())
        reason = problem or openvino_text(group, release_of)
        steps.append(chain_step("CPU", group, problem is None, reason))
    if cpu is not None:
        steps.append(chain_step("CPU", cpu, True, "ONNX Runtime runs it on every machine"))
    return Choice(steps=tuple(steps), builder=builder)


def openvino_problem(release_of: BuilderRelease, *, beside: bool, saturates: bool) -> str | None:
    """Return why OpenVINO does not run its engine here; `beside` one of ONNX Runtime, or alone."""
    if release_of("openvino") is None:
        return "openvino is not installed: pip install 'arvg-trt[openvino]'"
    if saturates and beside:
        return "products of INT8 may saturate with OpenVINO on this processor, which lacks VNNI"
    return None


def openvino_text(group: TargetGroup, release_of: BuilderRelease) -> str:
    """Return what runs OpenVINO's engine: blobs of another release are compiled again."""
    here = release_of("openvino")
    again = "" if here == group.version else f", compiled again: it is of {group.version}"
    return f"OpenVINO {here} runs it on the CPU{again}"


def chain_step(step: Step, group: TargetGroup, opens: bool, reason: str) -> ChainStep:
    return ChainStep(step=step, group=group.name, opens=opens, reason=reason)


def is_of_another_gpu(group: TargetGroup, gpu: Gpu | None) -> bool:
    """Return whether an engine is for this GPU's architecture, and was timed on another GPU.

    RTX engines are for an architecture as a whole. One that fits no GPU here is not of another: it
    is refused in the first step, and so named once.
    """
    if gpu is None or gpu.sm not in group.targets:
        return False
    return group.kind == "tensorrt" and group.gpu != gpu.name


def fit_text(group: TargetGroup, gpu: Gpu | None) -> str:
    assert gpu is not None
    where = f"{gpu.name}, {gpu.sm}"
    if is_of_another_gpu(group, gpu):
        return f"TensorRT {group.version} takes it on {where}; it was timed on {group.gpu}"
    return f"{TITLES[group.kind]} {group.version} for {where}"


def engine_problem(
    group: TargetGroup,
    device: Device,
    gpu: Gpu | None,
    problem_of: ProviderProblem = provider_problem,
) -> str | None:
    """Return why an engine does not open on a device; None if nothing speaks against it.

    NVIDIA: engines of either back end are for the very version that built them. TensorRT's are for
    one compute capability, those for RTX for the ones they were compiled for.
    """
    if group.kind == "tensorrt_rtx" and len(unopened(group.targets)) == len(group.targets):
        return unopened_text(group.targets)
    if gpu is None:
        return device.driver_problem or "the CPU was asked for"
    if gpu.sm not in group.targets:
        return f"it is for {' '.join(group.targets)}, and this GPU is {gpu.sm} ({gpu.name})"
    # The ONNX that they were built from lies beside them, and is not loaded.
    size = sum(file.bytes for file in group.files if file.path.endswith(".engine"))
    if size > gpu.memory_bytes:
        return f"it has {size / 1e9:.1f} GB, and the GPU's memory {gpu.memory_bytes / 1e9:.1f}"
    problem = problem_of(PROVIDERS[group.kind], gpu)
    if problem is not None:
        return f"{problem.what}: {problem.do}"
    found = opened_release(device, group.kind)
    if found is not None and not same_release(found, group.version):
        return f"it was built by {TITLES[group.kind]} {group.version}, and here is {found}"
    return None


def usable_builder(
    device: Device,
    gpu: Gpu | None,
    builders: Sequence[str],
    problem_of: ProviderProblem = provider_problem,
    release_of: BuilderRelease = builder_release,
) -> str | None:
    """Return the first builder whose engines a provider opens on the GPU; None if there is none."""
    if gpu is None:
        return None
    problems = (builder_problem(name, device, gpu, problem_of, release_of) for name in builders)
    found = (name for name, each in zip(builders, problems, strict=True) if each is None)
    return next(found, None)


def builder_problem(
    name: str,
    device: Device,
    gpu: Gpu,
    problem_of: ProviderProblem = provider_problem,
    release_of: BuilderRelease = builder_release,
) -> str | None:
    """Return why what a builder would build does not open on a GPU; None if nothing is known.

    A release that nobody says is taken to fit.
    """
    if problem_of(PROVIDERS[name], gpu) is not None:
        return f"no provider here opens what {TITLES[name]} would build"
    opens, builds = opened_release(device, name), release_of(name)
    if opens is not None and builds is not None and not same_release(opens, builds):
        return f"{TITLES[name]} {builds} is installed to build, and the provider here opens {opens}"
    return None


def opened_release(device: Device, kind: str) -> str | None:
    """Return the release whose engines the provider of a back end opens on a device."""
    return device.rtx_version if kind == "tensorrt_rtx" else device.tensorrt


def build_problem(
    device: Device,
    gpu: Gpu | None,
    builders: Sequence[str],
    problem_of: ProviderProblem = provider_problem,
    release_of: BuilderRelease = builder_release,
) -> str:
    """Return why no engine can be built here that then runs here."""
    if gpu is None:
        return device.driver_problem or "the CPU was asked for"
    if not builders:
        install = install_command("tensorrt", machine=device.machine)
        return f"no builder is installed: {install}, or on an RTX [rtx]"
    found = (builder_problem(name, device, gpu, problem_of, release_of) for name in builders)
    return "; ".join(problem for problem in found if problem is not None)


def titled(builder: str, release_of: BuilderRelease) -> str:
    """Return a builder's name with its release, where that is known."""
    return f"{TITLES[builder]} {release_of(builder) or ''}".strip()


def cuda_problem(
    device: Device, gpu: Gpu | None, problem_of: ProviderProblem = provider_problem
) -> str | None:
    """Return why ONNX Runtime cannot run graphs on CUDA here."""
    if gpu is None:
        return device.driver_problem or "the CPU was asked for"
    problem = problem_of(CUDA, gpu)
    return None if problem is None else f"{problem.what}: {problem.do}"


def refusal(facts: BundleFacts, choice: Choice) -> str:
    """Return one line that says why nothing of a bundle runs here."""
    first = next(iter(choice.steps), None)
    reasons = "; ".join(dict.fromkeys(f"{s.group}: {s.reason}" for s in choice.steps))
    return f"nothing in it runs here: {reasons}" if first else "it has no engine and no graph"


def chain_text(choice: Choice) -> list[str]:
    """Return the chain as lines: what is taken, and what comes before and after it."""
    chosen = choice.chosen
    lines = []
    for step in choice.steps:
        mark = "->" if step is chosen else ("  " if step.opens else " x")
        lines.append(f"{mark} {step.step:<17} {step.group}: {step.reason}")
    return lines
