"""Tests of the choice of a device, its provider, and the messages where there is none."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import arvg_trt
from arvg_trt.errors import BundleError
from arvg_trt.runtime import folders
from arvg_trt.runtime.devices import CPU, Device, Gpu, this_device
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.assignment import fallback_text, misplaced_nodes
from arvg_trt.runtime.sessions.open import fast_session, open_session
from arvg_trt.runtime.sessions.placement import (
    CUDA,
    FOR_GRAPHS,
    ON_CPU,
    PROVIDERS,
    TENSORRT_RTX,
    TITLES,
    Placement,
    Problem,
    gpu_of,
    place_engine,
    place_graphs,
)
from arvg_trt.runtime.trt_compat import Backend

from ..families.var.toy_var import ToyVar

NO_DRIVER = "no NVIDIA driver: libcuda.so.1 is missing"
ADA, TURING = Gpu(0, "NVIDIA GeForce RTX 4090", 89, 24 << 30), Gpu(1, "Tesla T4", 75, 15 << 30)
without_gpu = pytest.mark.skipif(bool(this_device().gpus), reason="this machine has a GPU")


def machine(*gpus: Gpu, problem: str | None = None) -> Device:
    return Device(
        system="Linux",
        machine="x86_64",
        gpus=gpus,
        driver="13.0" if gpus else None,
        driver_problem=problem,
        providers=(CUDA, CPU),
        rtx_provider=None,
        rtx_version=None,
        tensorrt=None,
    )


BARE, BOTH = machine(problem=NO_DRIVER), machine(ADA, TURING)


@pytest.mark.parametrize(
    ("device", "where", "wanted"),
    [
        ("cpu", BOTH, None),
        ("CPU", BOTH, None),
        ("auto", BARE, None),
        ("auto", BOTH, 0),
        ("cuda", BOTH, 0),
        ("cuda:0", BOTH, 0),
        ("cuda:1", BOTH, 1),
    ],
)
def test_a_device_is_the_cpu_or_a_gpu_by_number(
    device: str, where: Device, wanted: int | None
) -> None:
    assert gpu_of(device, where) == wanted


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "0", "cuda:99999"])
def test_what_is_no_device_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(BundleError, match=r"is no device .*cpu, cuda:0"):
        gpu_of(device, BOTH)


def test_a_gpu_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(BundleError) as caught:
        gpu_of("cuda:0", BARE)
    assert str(caught.value) == (
        f"--device cuda:0: {NO_DRIVER} (install the NVIDIA driver, or use --device cpu)"
    )
    with pytest.raises(BundleError, match=r"cuda:0 \(NVIDIA GeForce RTX 4090, sm89\), cuda:1"):
        gpu_of("cuda:2", BOTH)
    failing = machine(problem="the NVIDIA driver fails: cuInit says error 803")
    with pytest.raises(BundleError, match=r"error 803.*nvidia-smi"):
        gpu_of("cuda:0", failing)


@without_gpu
def test_a_gpu_without_a_provider_is_left_by_auto_and_refused_by_name() -> None:
    """Here CUDA's libraries are missing, the plug-in too; the line says all of it."""
    left = place_graphs("auto", machine=BOTH)
    assert not left.on_gpu and left.text == "cpu"
    assert place_graphs("auto", machine=BARE) == place_graphs("cpu", machine=BOTH) == ON_CPU
    with pytest.raises(BundleError) as caught:
        place_graphs("cuda:0", machine=BOTH)
    text = str(caught.value)
    assert "\n" not in text and "no provider runs on NVIDIA GeForce RTX 4090" in text
    assert text.count(";") >= len(FOR_GRAPHS) - 1 and "--device cpu" in text
    assert left.problem is not None
    assert f"--device cuda:0: {left.problem[:-1]}; or use --device cpu)" == text


@without_gpu
def test_graphs_say_that_auto_leaves_a_gpu_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for all graphs of a generator; where the CPU was asked for, none."""
    monkeypatch.setattr(folders, "this_device", lambda: BOTH)
    folder = ToyVar().save(tmp_path / "export")
    (text,) = Generator.open(folder, threads=1, verify=False).fallbacks
    reason = place_graphs("auto", machine=BOTH).problem
    assert text == f"condition and 5 more graphs: the GPU is not used: {reason}"
    assert not Generator.open(folder, device="cpu", threads=1, verify=False).fallbacks


def test_an_engine_says_what_keeps_it_from_this_device() -> None:
    def problem(*capabilities: int, device: str = "auto", on: Device = BOTH) -> str:
        found = place_engine(TENSORRT_RTX, capabilities, device, machine=on)
        assert isinstance(found, Problem)
        return found.what

    assert problem(89, on=BARE) == NO_DRIVER
    assert problem(89, device="cpu") == "the CPU was asked for"
    assert problem(86, 120) == "cuda:0 is NVIDIA GeForce RTX 4090, sm89"
    assert problem(89, device="cuda:1") == "cuda:1 is Tesla T4, sm75"
    # TensorRT for RTX compiles for sm75, which ONNX Runtime's plug-in does not take.
    assert "takes no sm75 (Tesla T4)" in problem(75)
    with pytest.raises(BundleError, match="no such GPU"):
        place_engine(TENSORRT_RTX, (89,), "cuda:7", machine=BOTH)


def two_nodes(path: Path) -> Path:
    """A graph of two products, neither of which is arithmetic on shapes."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="blocks.0.act"),
        helper.make_node("Exp", ["h"], ["y"], name="blocks.0.exp"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_names_of_back_ends_are_written_once() -> None:
    """Tables of them had been made in four modules."""
    root = Path(str(arvg_trt.__file__)).parent
    rooms = ("commands", "engines", "pipeline", "runtime", "validate")
    modules = [path for room in rooms for path in (root / room).rglob("*.py")]
    assert len(modules) > 100
    written = [
        path.relative_to(root).as_posix()
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == TITLES["tensorrt_rtx"]
    ]
    assert written == ["runtime/sessions/placement.py"]
    assert set(TITLES) == set(PROVIDERS) == set(get_args(Backend))


def test_nodes_that_ran_elsewhere_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    """ONNX Runtime itself says this of a session on the CPU, asked for on a GPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(two_nodes(tmp_path / "g.onnx"))
    session = ort.InferenceSession(path, options, providers=[CPU])
    assigned = session.get_provider_graph_assignment_info()
    assert misplaced_nodes(assigned, ON_CPU) == ()
    assert fallback_text((), ON_CPU) is None
    found = misplaced_nodes(assigned, Placement(CUDA))
    assert [node.op_type for node in found] == ["Relu", "Exp"]
    assert fallback_text(found, Placement(CUDA)) == (
        "2 nodes of the graph would run on the CPU instead of cuda:0, CUDAExecutionProvider, "
        "first blocks.0.act (Relu)"
    )


class Node:
    """Name a node as ONNX Runtime does."""

    def __init__(self, op_type: str) -> None:
        self.name, self.op_type = "", op_type


class Subgraph:
    """List nodes as ONNX Runtime does."""

    def __init__(self, provider: str, *kinds: str) -> None:
        self.ep_name, self._kinds = provider, kinds

    def get_nodes(self) -> list[Node]:
        return [Node(kind) for kind in self._kinds]


@pytest.mark.parametrize(
    ("provider", "kinds", "count"),
    [
        (CUDA, ("Shape", "Gather", "Concat"), 0),
        # CUDA's provider runs Shape itself; ONNX Runtime moves what computes with it alone.
        (CUDA, ("Concat", "Squeeze", "Reshape", "Mul", "Div", "Max", "Add"), 0),
        (CUDA, ("Shape", "Gather", "MatMul"), 1),
        (CUDA, ("Shape", "Relu", "Resize"), 2),
        (TENSORRT_RTX, ("Shape", "Gather", "Concat"), 3),
        (CUDA, (), 0),
    ],
)
def test_arithmetic_on_shapes_may_stay_on_the_cpu_beside_cuda_alone(
    provider: str, kinds: tuple[str, ...], count: int
) -> None:
    assigned = [Subgraph(provider, "MatMul"), Subgraph(CPU, *kinds)]
    assert len(misplaced_nodes(assigned, Placement(provider))) == count


@without_gpu
def test_a_session_that_falls_back_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    """Without a driver ONNX Runtime leaves CUDA out and goes on, which must not be silent."""
    path = two_nodes(tmp_path / "g.onnx")
    with pytest.raises(BundleError, match=r"2 nodes .* instead of cuda:0.*--allow-fallback"):
        fast_session(path, 1, Placement(CUDA))
    opened = open_session(
        path, optimized=False, placement=Placement(CUDA, allow_fallback=True), threads=1
    )
    assert opened.fallback is not None and "first blocks.0.act (Relu)" in opened.fallback
    x = np.array([[-1, 0, 1]], np.float32)
    for found in (opened.run({"x": x})["y"], opened.run_on_device({"x": x})["y"].numpy()):
        np.testing.assert_allclose(found, np.exp(np.maximum(x, 0)))
    assert fast_session(path, 1).fallback is None


def test_an_onnxruntime_that_hides_its_fallback_gets_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of 1.23.2, the last for Python 3.10, lack the method."""
    monkeypatch.delattr(ort.InferenceSession.__base__, "get_provider_graph_assignment_info")
    what = f"ONNX Runtime {ort.__version__} cannot say which provider runs each node"
    do = "install ONNX Runtime 1.24 or newer, which needs Python 3.11"
    path = two_nodes(tmp_path / "g.onnx")
    for placement in (Placement(CUDA), Placement(CUDA, allow_fallback=True)):
        with pytest.raises(BundleError) as caught:
            fast_session(path, 1, placement)
        assert str(caught.value) == f"{path}: {what} ({do}, or use --device cpu)"
    with pytest.raises(BundleError) as caught:
        place_graphs("cuda:0", machine=BOTH)
    assert str(caught.value).count(what) == 1 and do in str(caught.value)
    problem = place_engine(TENSORRT_RTX, (89,), machine=BOTH)
    assert isinstance(problem, Problem) and problem.what == what
    assert not place_graphs("auto", machine=BOTH).on_gpu
    assert fast_session(path, 1).fallback is None
