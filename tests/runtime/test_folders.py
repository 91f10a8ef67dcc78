"""Tests of the choice of what runs a folder of graphs or engines, and why engines do not run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from arvg_trt.engines.tensorrt.context_model import write_context_models
from arvg_trt.engines.tensorrt.targets import Target
from arvg_trt.errors import BundleError
from arvg_trt.runtime import folders
from arvg_trt.runtime.devices import Device, Gpu, this_device
from arvg_trt.runtime.folders import opener, placement_of, same_release
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.runtime.sessions.placement import ON_CPU, TENSORRT_RTX, Placement
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace.manifest import MANIFEST, Manifest, write_manifest
from arvg_trt.workspace.verify import read_manifest

VERSION = "1.7.1.116"
without_gpu = pytest.mark.skipif(bool(this_device().gpus), reason="this machine has a GPU")


def graph(path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"], name="act")
    made = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A folder as `build` leaves it for TensorRT for RTX."""
    folder = tmp_path / "rtx-sm86-sm89"
    folder.mkdir()
    for name in ("encoder", "decoder"):
        graph(folder / f"{name}.onnx")
        (folder / f"{name}.engine").write_bytes(name.encode())
    targets = [Target("sm86", 86), Target("sm89", 89)]
    write_context_models(folder, folder, ["encoder", "decoder"], "tensorrt_rtx", targets)
    manifest(folder, "tensorrt_rtx", ("sm86", "sm89"))
    return folder


def manifest(folder: Path, backend: str, targets: tuple[str, ...] = ()) -> None:
    options = {"backend": backend, "name": "int8", **({"targets": targets} if targets else {})}
    wanted = Manifest(
        stage="build",
        inputs={},
        options=msgspec.to_builtins(options),
        versions={backend: VERSION},
    )
    write_manifest(folder, wanted, {})


def machine(capability: int | None = 89, rtx: str | None = "1.7.1") -> Device:
    gpus = () if capability is None else (Gpu(0, "A GPU", capability, 1 << 34),)
    return Device(
        system="Linux",
        machine="x86_64",
        gpus=gpus,
        driver="13.0" if gpus else None,
        driver_problem=None if gpus else "no NVIDIA driver: libcuda.so.1 is missing",
        providers=(),
        rtx_provider="0.5.0",
        rtx_version=rtx,
        tensorrt=None,
    )


def refused(folder: Path, where: Device, device: str = "auto") -> str:
    with pytest.raises(BundleError) as caught:
        placement_of(folder, device, machine=where)
    text = str(caught.value)
    assert "\n" not in text and "holds TensorRT for RTX engines for sm86 sm89" in text
    return text


def test_engines_say_what_this_machine_lacks(engines: Path) -> None:
    assert "do not run here: no NVIDIA driver: libcuda.so.1 is missing" in refused(
        engines, machine(None)
    )
    assert "cuda:0 is A GPU, sm120 (build with --target sm120; or name ONNX" in refused(
        engines, machine(120)
    )
    assert "the CPU was asked for" in refused(engines, machine(), "cpu")
    assert "1.7.1.116 built them, and 1.8.0 is installed" in refused(engines, machine(rtx="1.8.0"))


@without_gpu
def test_a_fitting_gpu_without_the_plug_in_is_told_to_install_it(engines: Path) -> None:
    """Nothing but the provider is missing for such a GPU, which this machine does not have."""
    text = refused(engines, machine())
    assert "onnxruntime-ep-nv-tensorrt-rtx" in text or "libcuda.so.1, which is missing" in text


def test_engines_of_an_older_build_are_to_be_built_again(engines: Path) -> None:
    (engines / "decoder_ctx.onnx").unlink()
    text = refused(engines, machine())
    assert "decoder.engine has no EPContext model beside it" in text
    assert "remove the folder and build again" in text


def test_an_engine_is_opened_by_its_context_model_and_never_by_its_twin(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy beside it would run; the EPContext model asks for a provider that is not here."""
    monkeypatch.setattr(folders, "place_engine", lambda *_, **__: ON_CPU)
    opened = opener(engines, fast_session)
    with pytest.raises(BundleError, match="EPContext") as caught:
        opened(engines / "encoder.onnx", 1)
    assert caught.value.where == str(engines / "encoder_ctx.onnx")
    (engines / "encoder.onnx").unlink()  # nothing needs the copy
    (engines / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match="EPContext"):
        ImageTokenizer.open(engines, verify=False)


def test_a_folders_manifest_is_read_once(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(folder: Path) -> Manifest | None:
        read.append(folder)
        return read_manifest(folder)

    monkeypatch.setattr(folders, "read_manifest", counted)
    monkeypatch.setattr(folders, "place_engine", lambda *_, **__: ON_CPU)
    opener(engines, fast_session)
    assert read == [engines]
    assert placement_of(engines) == ON_CPU
    assert read == [engines] * 2
    monkeypatch.undo()
    monkeypatch.setattr(folders, "read_manifest", counted)
    refused(engines, machine(None))
    assert read == [engines] * 3


def test_where_shapes_are_fixed_the_placement_says_so(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Placement(TENSORRT_RTX, 1, True)
    monkeypatch.setattr(folders, "place_engine", lambda *_, **__: found)
    placed = placement_of(engines, "cuda:1", allow_fallback=True, static=True)
    assert placed == Placement(TENSORRT_RTX, 1, True, static=True)


def test_engines_of_onnxruntime_stay_on_the_cpu_that_they_are_for(tmp_path: Path) -> None:
    folder = tmp_path / "onnxruntime"
    folder.mkdir()
    graph(folder / "encoder.onnx")
    manifest(folder, "onnxruntime")
    assert placement_of(folder, "auto", machine=machine()) == ON_CPU
    assert (folder / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("1.7.1", "1.7.1.116", True),
        ("1.7", "1.7.1.116", True),
        ("1.7.0", "1.7.1", False),
        ("10.14.1", "11.3.0", False),
    ],
)
def test_releases_are_compared_as_far_as_both_say_them(one: str, other: str, wanted: bool) -> None:
    assert same_release(one, other) is same_release(other, one) is wanted
