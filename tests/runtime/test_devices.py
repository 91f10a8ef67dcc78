"""Tests of what this machine is said to have, with and without a driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arvg_trt.runtime import devices
from arvg_trt.runtime.devices import Device, Gpu, driver_facts, rtx_packages, this_device

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler for a stand-in driver")

# A driver of CUDA 13.0 with an RTX 4090 and a T4, as far as it is asked; STATUS is cuInit's.
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 40; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, device == 40 ? "NVIDIA GeForce RTX 4090" : "Tesla T4", length); return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = device == 40 ? 25757220864 : 15828320256; return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? (device == 40 ? 8 : 7) : (device == 40 ? 9 : 5);
  return attribute == 75 || attribute == 76 ? 0 : 1;
}
int cuGetErrorName(int error, const char **text) {
  *text = error == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL; return error == 100 ? 0 : 1;
}
int cuGetErrorString(int error, const char **text) {
  *text = error == 100 ? "no CUDA-capable device is detected" : NULL; return error == 100 ? 0 : 1;
}
"""


def stand_in(folder: Path, *, status: int = 0, count: int = 2, source: str = DRIVER) -> Path:
    """Compile a library with the functions of a driver, named like it."""
    path = folder / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "driver.c").write_text(source)
    subprocess.run(
        [
            *(str(COMPILER), "-shared", "-fPIC", f"-DSTATUS={status}", f"-DCOUNT={count}"),
            *("-o", str(path), str(folder / "driver.c")),
        ],
        check=True,
    )
    return path


def test_a_missing_driver_is_said_and_raises_nothing() -> None:
    gpus, driver, problem = driver_facts("libcuda_that_is_not_here.so.1")
    assert (gpus, driver) == ((), None)
    assert problem == "no NVIDIA driver: libcuda_that_is_not_here.so.1 is missing"


@needs_compiler
def test_gpus_are_as_the_driver_describes_them(tmp_path: Path) -> None:
    gpus, driver, problem = driver_facts(str(stand_in(tmp_path)))
    assert gpus == (
        Gpu(0, "NVIDIA GeForce RTX 4090", 89, 25757220864),
        Gpu(1, "Tesla T4", 75, 15828320256),
    )
    assert gpus[0].sm == "sm89"
    assert (driver, problem) == ("13.0", None)


@needs_compiler
def test_a_driver_without_a_gpu_says_its_own_reason(tmp_path: Path) -> None:
    none = driver_facts(str(stand_in(tmp_path / "none", status=100)))
    assert none[:2] == ((), None)
    assert none[2] == (
        "the NVIDIA driver fails: cuInit says CUDA_ERROR_NO_DEVICE, "
        "no CUDA-capable device is detected"
    )
    unknown = driver_facts(str(stand_in(tmp_path / "unknown", status=803)))
    assert unknown[2] == "the NVIDIA driver fails: cuInit says error 803"
    empty = driver_facts(str(stand_in(tmp_path / "empty", count=0)))
    assert empty == ((), "13.0", "the NVIDIA driver lists no GPU")


@needs_compiler
def test_a_library_that_is_no_driver_is_said_to_be_damaged(tmp_path: Path) -> None:
    library = stand_in(tmp_path, source="int cuInit(unsigned flags) { return 0; }")
    assert driver_facts(str(library)) == (
        (),
        None,
        "the NVIDIA driver is damaged: it has no cuDriverGetVersion",
    )
    (tmp_path / "text.so").write_text("no library")
    problem = driver_facts(str(tmp_path / "text.so"))[2]
    assert problem is not None and "\n" not in problem and "file too short" in problem


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="the loader's path is Linux's")
def test_this_device_and_the_builders_door_see_the_same_gpu(tmp_path: Path) -> None:
    stand_in(tmp_path)
    code = (
        "import json, msgspec; from arvg_trt.runtime.devices import this_device;"
        "from arvg_trt.runtime.trt_compat import device_compute_capability as first;"
        "print(json.dumps([msgspec.to_builtins(this_device()), first()]))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    device, first = json.loads(made.stdout)
    assert [gpu["compute_capability"] for gpu in device["gpus"]] == [89, 75]
    assert (device["driver"], device["driver_problem"], first) == ("13.0", None, 89)


def test_this_device_is_asked_once_and_knows_the_cpu_provider() -> None:
    device = this_device()
    assert isinstance(device, Device) and device is this_device()
    assert devices.CPU in device.providers
    assert bool(device.gpus) is (device.driver_problem is None)


def test_plug_in_package_says_which_tensorrt_for_rtx_it_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are named as in version 0.5.0, for CUDA 12 as on Windows."""
    assert rtx_packages() == (None, None) or rtx_packages()[1] is not None
    for name, library in (
        ("cu12", "tensorrt_rtx_1_6.dll"),
        ("cu13", "libtensorrt_rtx.so.1.7.1"),
    ):
        info = tmp_path / name / f"onnxruntime_ep_nv_tensorrt_rtx_{name}-0.5.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: onnxruntime-ep-nv-tensorrt-rtx-{name}\nVersion: 0.5.0\n"
        )
        folder = "onnxruntime_ep_nv_tensorrt_rtx"
        files = ("__init__.py", "libtensorrt_onnxparser_rtx.so.9.9.9", library)
        (info / "RECORD").write_text("".join(f"{folder}/{file},,\n" for file in files))
        (tmp_path / name / folder).mkdir()
        for file in files:  # Python 3.12 and importlib_metadata leave out what is not there
            (tmp_path / name / folder / file).touch()
    monkeypatch.syspath_prepend(str(tmp_path / "cu12"))
    assert rtx_packages() == ("0.5.0", "1.6")
    monkeypatch.syspath_prepend(str(tmp_path / "cu13"))
    assert rtx_packages() == ("0.5.0", "1.7.1")


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="the loader's path is Linux's")
@pytest.mark.skipif(this_device().tensorrt is not None, reason="TensorRT is installed")
def test_of_two_tensorrts_that_counts_which_onnxruntime_opens(tmp_path: Path) -> None:
    code = "from arvg_trt.runtime.devices import tensorrt_version; print(tensorrt_version())"
    found = []
    for major, number in ((11, 110000), (10, 101401)):
        source = tmp_path / f"{major}.c"
        source.write_text(f"int getInferLibVersion(void) {{ return {number}; }}")
        library = tmp_path / f"libnvinfer.so.{major}"
        subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True)
        made = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
            capture_output=True,
            check=True,
            text=True,
        )
        found.append(made.stdout.strip())
    assert found == ["11.0.0", "10.14.1"]  # with 11 alone, then with both
