"""Engines of other GPUs and other versions do not open, and say why; the next step is taken."""

from __future__ import annotations

import msgspec
import pytest

from arvg_trt.benchmarks.fuzz.bundles import RTX, small_contents, target_group
from arvg_trt.runtime.bundle.choose import Choice, ProviderProblem, chain_text, refusal
from arvg_trt.runtime.bundle.choose import choose as choose_by_providers
from arvg_trt.runtime.bundle.layout import BundleFacts
from arvg_trt.runtime.devices import Device, Gpu, this_device
from arvg_trt.runtime.sessions.placement import CUDA, TENSORRT, TENSORRT_RTX, Problem

A10 = Gpu(index=0, name="NVIDIA A10", compute_capability=86, memory_bytes=24 * 10**9)
L4 = Gpu(index=0, name="NVIDIA L4", compute_capability=89, memory_bytes=24 * 10**9)
A40 = Gpu(index=0, name="NVIDIA A40", compute_capability=86, memory_bytes=48 * 10**9)
T4 = Gpu(index=0, name="Tesla T4", compute_capability=75, memory_bytes=16 * 10**9)
TINY = Gpu(index=0, name="NVIDIA A10", compute_capability=86, memory_bytes=10)
DEVICE = Device(
    system="Linux",
    machine="x86_64",
    gpus=(A10,),
    driver="13.0",
    driver_problem=None,
    providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    rtx_provider="0.3.0",
    rtx_version=RTX,
    tensorrt="10.9.0",
)


def bundle_facts(*kinds: str) -> BundleFacts:
    """The facts of a bundle with these groups of rtx, trt, kit, cpu."""
    trt = {"engines/int8/trt/model.engine": b"an engine of TensorRT"}
    kit = {"kit/model.onnx": b"a graph"}
    more = [
        (
            target_group(
                "trt", "tensorrt", trt, version="10.9.0", targets=("sm86",), gpu="NVIDIA A10"
            ),
            trt,
        ),
        (target_group("kit", "kit", kit), kit),
    ]
    facts = small_contents(more=more).facts
    groups = tuple(group for group in facts.groups if group.name in kinds)
    return msgspec.structs.replace(facts, groups=groups)


ALL = ("rtx", "trt", "kit", "cpu")


def changed(**values: object) -> Device:
    return msgspec.structs.replace(DEVICE, **values)


def without(*providers: str) -> ProviderProblem:
    """Say that these providers do not run, and that all others do, whatever is installed here."""
    lacking = {name: Problem(f"{name} is not there", "install it") for name in providers}
    return lambda provider, gpu: lacking.get(provider)


ALL_RUN = without()


def choose(
    facts: BundleFacts,
    device: Device,
    gpu: Gpu | None,
    builders: tuple[str, ...] = (),
    problem_of: ProviderProblem = ALL_RUN,
) -> Choice:
    """Choose as on a device whose providers all run."""
    return choose_by_providers(facts, device, gpu, builders, problem_of)


def chosen(choice: Choice) -> tuple[str, str] | None:
    step = choice.chosen
    return None if step is None else (step.step, step.group)


def reason(choice: Choice, group: str) -> str:
    """Why an engine does not open."""
    (step,) = (step for step in choice.steps if step.group == group)
    assert not step.opens
    return step.reason


def test_exact_engine_comes_first() -> None:
    assert chosen(choose(bundle_facts(*ALL), DEVICE, A10)) == ("exact engine", "rtx")
    assert chosen(choose(bundle_facts("trt", "kit", "cpu"), DEVICE, A10)) == ("exact engine", "trt")


def test_engine_timed_on_another_gpu_of_its_kind_is_compatible_and_says_so() -> None:
    choice = choose(bundle_facts("trt", "cpu"), DEVICE, A40)
    assert chosen(choice) == ("compatible engine", "trt")
    assert "it was timed on NVIDIA A10" in choice.steps[0].reason


@pytest.mark.parametrize("gpu", [T4, msgspec.structs.replace(T4, compute_capability=120)])
def test_engine_of_another_gpu_does_not_open(gpu: Gpu) -> None:
    choice = choose(bundle_facts("rtx", "trt", "cpu"), DEVICE, gpu)
    assert chosen(choice) == ("CPU", "cpu")
    assert reason(choice, "rtx") == (
        f"it is for sm86 sm89, and this GPU is sm{gpu.compute_capability} (Tesla T4)"
    )
    assert reason(choice, "trt").startswith("it is for sm86, and")


@pytest.mark.parametrize("version", ["1.7.1.25", "1.8.0.25", "2.7.0.25", "1.70.0.25", "0"])
def test_engine_of_another_version_of_rtx_does_not_open(version: str) -> None:
    choice = choose(bundle_facts("rtx", "cpu"), changed(rtx_version=version), L4)
    assert chosen(choice) == ("CPU", "cpu")
    assert reason(choice, "rtx") == (
        f"it was built by TensorRT for RTX {RTX}, and here is {version}"
    )


@pytest.mark.parametrize("version", ["10.9.1", "10.8.0", "11.9.0", "10.90.0", "1.9.0"])
def test_engine_of_another_version_of_tensorrt_does_not_open(version: str) -> None:
    choice = choose(bundle_facts("trt", "cpu"), changed(tensorrt=version), A10)
    assert chosen(choice) == ("CPU", "cpu")
    assert "it was built by TensorRT 10.9.0, and here is" in reason(choice, "trt")


def test_engine_without_a_version_does_not_open() -> None:
    facts = bundle_facts("rtx", "cpu")
    groups = (msgspec.structs.replace(facts.groups[0], version=""), facts.groups[1])
    choice = choose(msgspec.structs.replace(facts, groups=groups), DEVICE, A10)
    assert chosen(choice) == ("CPU", "cpu")


def test_version_of_two_numbers_is_compared_in_these() -> None:
    """On Windows the file of TensorRT for RTX says no more."""
    assert chosen(choose(bundle_facts("rtx"), changed(rtx_version="1.7"), A10)) is not None
    assert chosen(choose(bundle_facts("rtx"), changed(rtx_version="1.6"), A10)) is None


@pytest.mark.parametrize(("group", "provider"), [("rtx", TENSORRT_RTX), ("trt", TENSORRT)])
def test_engine_whose_provider_does_not_run_says_what_to_install(group: str, provider: str) -> None:
    choice = choose(bundle_facts(group, "cpu"), DEVICE, A10, (), without(provider))
    assert chosen(choice) == ("CPU", "cpu")
    assert reason(choice, group) == f"{provider} is not there: install it"


def test_here_the_reason_is_that_of_the_installed_providers() -> None:
    """Without a driver no provider runs, and each says what it lacks."""
    steps = choose_by_providers(bundle_facts(*ALL), DEVICE, A10, ("tensorrt_rtx",)).steps
    if not this_device().gpus:
        assert [step.step for step in steps if step.opens] == ["CPU"]
        assert all(step.reason for step in steps)


def test_engine_larger_than_the_gpus_memory_does_not_open() -> None:
    choice = choose(bundle_facts("rtx", "trt", "cpu"), DEVICE, TINY)
    assert "and the GPU's memory" in reason(choice, "rtx")
    assert chosen(choice) == ("CPU", "cpu")


def test_without_a_gpu_each_step_says_the_drivers_reason_once() -> None:
    device = changed(gpus=(), driver=None, driver_problem="no NVIDIA driver: x is missing")
    choice = choose(bundle_facts(*ALL), device, None, ("tensorrt",))
    assert chosen(choice) == ("CPU", "cpu")
    assert [step.step for step in choice.steps].count("exact engine") == 2
    assert {s.reason for s in choice.steps if not s.opens} == {device.driver_problem}


def test_kit_is_built_where_there_is_a_builder_else_run_on_cuda() -> None:
    facts = bundle_facts("kit", "cpu")
    both = ("tensorrt", "tensorrt_rtx")
    assert chosen(choose(facts, DEVICE, T4, both)) == ("build here", "kit")
    assert chosen(choose(facts, DEVICE, T4)) == ("CUDA", "kit")
    assert chosen(choose(facts, DEVICE, T4, (), without(CUDA))) == ("CPU", "cpu")


def test_a_kit_is_built_by_whose_engines_run_here() -> None:
    facts = bundle_facts("kit", "cpu")
    both = ("tensorrt", "tensorrt_rtx")
    choice = choose(facts, DEVICE, T4, both, without(TENSORRT))
    assert choice.steps[0].reason == "TensorRT for RTX builds it once, into the cache"
    choice = choose(facts, DEVICE, T4, both, without(TENSORRT, TENSORRT_RTX))
    assert chosen(choice) == ("CUDA", "kit")
    assert choice.steps[0].reason.startswith("no provider here opens what TensorRT, TensorRT for")


def test_nothing_that_runs_is_said_in_one_line() -> None:
    facts = bundle_facts("rtx", "trt")
    choice = choose(facts, DEVICE, T4)
    assert chosen(choice) is None
    text = refusal(facts, choice)
    assert text.startswith("nothing in it runs here: rtx: it is for") and text.isprintable()
    assert refusal(facts, Choice(steps=())) == "it has no engine and no graph"
    assert all(line.isprintable() for line in chain_text(choice))
    assert [line[:2] for line in chain_text(choice)] == [" x", " x"]
