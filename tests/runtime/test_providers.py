"""Tests of loading and setting up ONNX Runtime's providers, up to the driver's error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from arvg_trt.errors import BundleError, WorkspaceError
from arvg_trt.runtime.devices import CPU, Device, Gpu, this_device
from arvg_trt.runtime.sessions import providers
from arvg_trt.runtime.sessions.placement import CUDA, TENSORRT, TENSORRT_RTX, Placement, Problem
from arvg_trt.runtime.sessions.providers import (
    cache_folder,
    library_problem,
    missing_library,
    provider_options,
    provider_problem,
    rtx_device,
)
from arvg_trt.workspace.files import own_folder, user_cache

from .test_devices import COMPILER, needs_compiler, stand_in

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the loader's path is Linux's")
REGISTER = """
from arvg_trt.runtime.sessions.providers import registered_rtx
first, second = registered_rtx(), registered_rtx()
assert first is second  # once a process
print(first.what, "|", first.do)
"""
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


def plug_in(folder: Path) -> Path:
    """A package with the names of the plug-in, whose library is no library."""
    info = folder / f"{PACKAGE}_cu13-0.5.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: onnxruntime-ep-nv-tensorrt-rtx-cu13\nVersion: 0.5.0\n"
    )
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "plug_in.so").write_text("no library")
    (folder / PACKAGE / "__init__.py").write_text(
        "import pathlib\n"
        "def get_library_path():\n"
        "    return str(pathlib.Path(__file__).with_name('plug_in.so'))\n"
    )
    return folder


def registered(packages: Path | None, libraries: Path) -> str:
    """Return what registration says in a process with these packages and libraries."""
    added = {"LD_LIBRARY_PATH": str(libraries)}
    if packages is not None:
        added["PYTHONPATH"] = str(packages)
    made = subprocess.run(
        [sys.executable, "-c", REGISTER],
        env=os.environ | added,
        capture_output=True,
        check=True,
        text=True,
    )
    return made.stdout.strip()


def nvml(folder: Path) -> None:
    (folder / "nvml.c").write_text("int nvmlInit_v2(void) { return 9; }")
    library = folder / "libnvidia-ml.so.1"
    command = [str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(folder / "nvml.c")]
    subprocess.run(command, check=True)


@on_linux
@needs_compiler
@pytest.mark.skipif(this_device().driver is not None, reason="this machine has a driver")
@pytest.mark.skipif(this_device().rtx_provider is not None, reason="the plug-in is installed")
def test_each_thing_that_the_plug_in_lacks_has_a_message_of_its_own(tmp_path: Path) -> None:
    packages, libraries = plug_in(tmp_path / "packages"), tmp_path / "libraries"
    libraries.mkdir()
    absent = registered(None, libraries)
    assert absent == (
        "the package onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed | "
        "pip install 'arvg-trt[edge-rtx]'"
    )
    assert "needs libcuda.so.1, which is missing | install" in registered(packages, libraries)
    stand_in(libraries, status=100)
    assert "needs libnvidia-ml.so.1, which is missing" in registered(packages, libraries)
    nvml(libraries)
    broken = registered(packages, libraries)
    assert broken.startswith(f"the plug-in {PACKAGE} cannot be registered: ")
    assert "plug_in.so" in broken and broken.endswith("onnxruntime-ep-nv-tensorrt-rtx-cu13")


@on_linux
@needs_compiler
def test_the_library_that_a_library_needs_is_named(tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int nothing(void) { return 0; }")
    needed, path = tmp_path / "libneeded_by_it.so.7", tmp_path / "libasked.so"
    shared = [str(COMPILER), "-shared", "-fPIC"]
    subprocess.run([*shared, f"-Wl,-soname,{needed.name}", "-o", needed, source], check=True)
    subprocess.run([*shared, "-Wl,--no-as-needed", "-o", path, source, needed], check=True)
    needed.unlink()
    assert missing_library(str(path)) == needed.name
    assert missing_library(str(tmp_path / "libabsent.so")) == str(tmp_path / "libabsent.so")
    assert missing_library("libc.so.6") is None


@on_linux
@pytest.mark.skipif(this_device().driver is not None, reason="this machine has a driver")
def test_providers_inside_onnxruntime_name_the_library_that_they_lack() -> None:
    found = library_problem(CUDA)
    assert isinstance(found, Problem)
    assert "cannot load lib" in found.what or "for the CPU alone" in found.what
    assert library_problem(CUDA) is found
    assert library_problem("NoSuchExecutionProvider").what.endswith("for the CPU alone")


@pytest.mark.parametrize("capability", [75, 80, 87, 90, 100])
def test_gpus_that_the_plug_in_does_not_take_are_refused_before_it_is_asked(
    capability: int,
) -> None:
    problem = provider_problem(TENSORRT_RTX, Gpu(0, "A GPU", capability, 1 << 30))
    assert problem is not None and f"takes no sm{capability} (A GPU)" in problem.what


def machine(driver: str = "13.0", rtx: str = "1.7.1", capability: int = 89) -> Device:
    return Device(
        system="Linux",
        machine="x86_64",
        gpus=(Gpu(0, "NVIDIA GeForce RTX 4090", capability, 24 << 30),),
        driver=driver,
        driver_problem=None,
        providers=(CUDA, CPU),
        rtx_provider="0.5.0",
        rtx_version=rtx,
        tensorrt="10.14.1",
    )


def test_the_plug_ins_devices_are_the_gpus_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Gpu(k, f"GPU {k}", sm, 1 << 30) for k, sm in enumerate((75, 89, 80, 120)))
    monkeypatch.setattr(
        providers, "this_device", lambda: msgspec.structs.replace(machine(), gpus=gpus)
    )
    monkeypatch.setattr(providers, "registered_rtx", lambda: ("the 4090", "the 5090"))
    assert (rtx_device(1), rtx_device(3)) == ("the 4090", "the 5090")
    with pytest.raises(BundleError, match="cuda:0: the plug-in does not list it"):
        rtx_device(0)
    monkeypatch.setattr(providers, "registered_rtx", lambda: Problem("it is not installed", None))
    with pytest.raises(BundleError, match="cuda:1: it is not installed"):
        rtx_device(1)


def test_caches_are_kept_by_gpu_driver_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_CACHE", str(tmp_path))
    folders = set()
    machines = (machine(), machine("13.1"), machine(rtx="1.8.0"), machine(capability=86))
    for each in machines:
        monkeypatch.setattr(providers, "this_device", lambda each=each: each)
        folders.add(cache_folder(Placement(TENSORRT_RTX)))
    assert len(folders) == len(machines)
    monkeypatch.setattr(providers, "this_device", machine)
    rtx, classic = cache_folder(Placement(TENSORRT_RTX)), cache_folder(Placement(TENSORRT))
    assert rtx == tmp_path / "nvtensorrtrtx" / "NVIDIA_GeForce_RTX_4090-sm89-cuda13.0-v1.7.1"
    assert classic.parent.name == "tensorrt" and classic.name.endswith("v10.14.1")
    assert rtx.is_dir() and rtx in folders
    monkeypatch.delenv("ARVG_TRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform != "win32":
        assert user_cache() == tmp_path / "xdg" / "arvg-trt"


def test_options_of_providers_are_for_their_gpu_and_keep_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_CACHE", str(tmp_path))
    monkeypatch.setattr(providers, "this_device", machine)
    assert provider_options(Placement()) == {}
    assert provider_options(Placement(CUDA, 1)) == {"device_id": "1", "use_tf32": "0"}
    for static, wanted in ((False, "0"), (True, "1")):
        options = provider_options(Placement(TENSORRT_RTX, static=static))
        assert options["enable_cuda_graph"] == wanted
        assert options["nv_persistent_context_memory"] == "1"
        assert Path(options["nv_runtime_cache_path"]).is_relative_to(tmp_path)
    classic = provider_options(Placement(TENSORRT))
    assert classic["trt_engine_cache_enable"] == "1" and classic["device_id"] == "0"


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no modes there")
def test_what_providers_compile_is_the_users_alone_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of bundles lies beside it, and refuses a folder that others may change."""
    cache = tmp_path / "home" / "cache"
    monkeypatch.setenv("ARVG_TRT_CACHE", str(cache))
    monkeypatch.setattr(providers, "this_device", machine)
    before = os.umask(0o002)  # of distributions where each user has a group
    try:
        folder = cache_folder(Placement(TENSORRT_RTX))
    finally:
        os.umask(before)
    for each in (folder, folder.parent, cache):
        assert each.stat().st_mode & 0o777 == 0o700
    assert own_folder(cache / "bundles").is_dir()
    cache.chmod(0o775)
    with pytest.raises(WorkspaceError, match=f"chmod go-w {cache}, or set ARVG_TRT_CACHE"):
        cache_folder(Placement(TENSORRT_RTX))
