"""Engines of other GPUs and other versions do not open, and say why; the next step is taken."""

from __future__ import annotations

import msgspec
import pytest

from arvg_trt.benchmarks.fuzz.bundles import RTX, small_contents, target_group
from arvg_trt.runtime.bundle.choose import (
    BuilderRelease,
    Choice,
    ProviderProblem,
    chain_text,
    refusal,
)
from arvg_trt.runtime.bundle.choose import choose as choose_by_providers
from arvg_trt.runtime.bundle.layout import BundleFacts, BundleFile
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
    release_of: BuilderRelease = {"tensorrt": "10.9.0", "tensorrt_rtx": RTX}.get,
) -> Choice:
    """Choose as on a device whose providers all run."""
    return choose_by_providers(facts, device, gpu, builders, problem_of, release_of)


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
    assert choice.steps[0].reason == f"TensorRT for RTX {RTX} builds it once, into the cache"
    assert choice.builder == "tensorrt_rtx"
    assert choice.without(choice.steps[0], "it failed").builder == "tensorrt_rtx"
    choice = choose(facts, DEVICE, T4, both, without(TENSORRT, TENSORRT_RTX))
    assert (chosen(choice), choice.builder) == (("CUDA", "kit"), None)
    assert choice.steps[0].reason == (
        "no provider here opens what TensorRT would build; "
        "no provider here opens what TensorRT for RTX would build"
    )


def test_a_builder_of_another_release_than_the_provider_is_passed_over() -> None:
    facts, both = bundle_facts("kit", "cpu"), ("tensorrt", "tensorrt_rtx")
    releases = {"tensorrt": "10.13.0", "tensorrt_rtx": "1.8.0.3"}
    choice = choose(facts, DEVICE, A10, both, ALL_RUN, releases.get)
    assert chosen(choice) == ("CUDA", "kit")
    assert choice.steps[0].reason == (
        "TensorRT 10.13.0 is installed to build, and the provider here opens 10.9.0; "
        f"TensorRT for RTX 1.8.0.3 is installed to build, and the provider here opens {RTX}"
    )
    choice = choose(facts, DEVICE, A10, both, ALL_RUN, (releases | {"tensorrt_rtx": RTX}).get)
    assert choice.steps[0].reason.startswith(f"TensorRT for RTX {RTX} builds it once")


def test_a_release_that_nothing_says_is_taken_to_fit() -> None:
    facts = bundle_facts("kit", "cpu")
    choice = choose(facts, DEVICE, A10, ("tensorrt",), ALL_RUN, {}.get)
    assert choice.steps[0].reason == "TensorRT builds it once, into the cache"
    choice = choose(facts, changed(tensorrt=None), A10, ("tensorrt",))
    assert chosen(choice) == ("build here", "kit")


def test_a_jetson_is_told_of_the_tensorrt_that_it_has() -> None:
    facts = bundle_facts("kit", "cpu")
    choice = choose(facts, changed(machine="aarch64"), A10)
    assert "TensorRT of JetPack itself, and pip install 'arvg-trt[kit]'" in choice.steps[0].reason
    assert "arvg-trt[tensorrt]" in choose(facts, DEVICE, A10).steps[0].reason


def test_graphs_beside_the_engines_take_no_memory_of_the_gpu() -> None:
    facts = bundle_facts("rtx")
    (group,) = facts.groups
    copy = BundleFile(path="engines/int8/rtx/model.onnx.data", sha256="0" * 64, bytes=10**12)
    with_copy = msgspec.structs.replace(group, files=(*group.files, copy))
    facts = msgspec.structs.replace(facts, groups=(with_copy,))
    assert chosen(choose(facts, DEVICE, A10)) == ("exact engine", "rtx")


@pytest.mark.parametrize("gpu", [None, A10, T4])
def test_rtx_engines_that_no_provider_opens_say_so_with_and_without_a_gpu(gpu: Gpu | None) -> None:
    facts = bundle_facts("rtx", "cpu")
    old = msgspec.structs.replace(facts.groups[0], targets=("sm75", "sm80"))
    facts = msgspec.structs.replace(facts, groups=(old, *facts.groups[1:]))
    assert reason(choose(facts, DEVICE, gpu), "rtx").startswith(
        "no provider of ONNX Runtime opens engines of TensorRT for RTX on sm75 sm80: "
    )


def test_nothing_that_runs_is_said_in_one_line() -> None:
    facts = bundle_facts("rtx", "trt")
    choice = choose(facts, DEVICE, T4)
    assert chosen(choice) is None
    text = refusal(facts, choice)
    assert text.startswith("nothing in it runs here: rtx: it is for") and text.isprintable()
    assert refusal(facts, Choice(steps=())) == "it has no engine and no graph"
    assert all(line.isprintable() for line in chain_text(choice))
    assert [line[:2] for line in chain_text(choice)] == [" x", " x"]


def with_openvino(*kinds: str) -> BundleFacts:
    """The facts of a bundle that has an engine of OpenVINO as well."""
    files = {"engines/int8/openvino/model.onnx": b"a graph"}
    group = target_group("openvino", "openvino", files, version="2026.4.1")
    facts = bundle_facts(*kinds)
    return msgspec.structs.replace(facts, groups=(*facts.groups, group))


@pytest.mark.parametrize(
    ("here", "saturates", "kinds", "taken", "words"),
    [
        ("2026.4.1", False, ("cpu",), "openvino", "OpenVINO 2026.4.1 runs it on the CPU"),
        ("2027.1.0", False, ("cpu",), "openvino", "compiled again: it is of 2026.4.1"),
        ("2026.4.1", True, ("cpu",), "cpu", "lacks VNNI"),
        ("2026.4.1", True, (), "openvino", "OpenVINO 2026.4.1"),
        (None, False, ("cpu",), "cpu", "pip install 'arvg-trt[openvino]'"),
    ],
)
def test_openvinos_engine_comes_first_where_it_is_installed_and_exact(
    here: str | None, saturates: bool, kinds: tuple[str, ...], taken: str, words: str
) -> None:
    choice = choose_by_providers(
        with_openvino(*kinds),
        changed(gpus=()),
        None,
        release_of={"openvino": here}.get,
        saturates=lambda: saturates,
    )
    assert chosen(choice) == ("CPU", taken)
    (step,) = (step for step in choice.steps if step.group == "openvino")
    assert words in step.reason


def test_bundle_of_openvino_alone_says_what_to_install() -> None:
    facts = with_openvino()
    choice = choose_by_providers(facts, changed(gpus=()), None, release_of={}.get)
    assert choice.chosen is None
    assert "pip install 'arvg-trt[openvino]'" in refusal(facts, choice)
