"""Sessions take the processors that their process may use, not all of the machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from arvg_trt.runtime.sessions import onnxruntime
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.runtime.sessions.processors import (
    available_processors,
    may_saturate,
    quota_of,
    session_threads,
)

# It may run on one processor; prints the session's threads beside those that were there before.
ONE_PROCESSOR = """
import os, sys
from pathlib import Path
from arvg_trt.runtime.sessions import onnxruntime
from arvg_trt.runtime.sessions.open import fast_session
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
before = set(os.listdir("/proc/self/task"))
session = fast_session(Path(sys.argv[1]))
started = set(os.listdir("/proc/self/task")) - before
print(len(started))
"""


def product() -> ModelProto:
    """A product of [n, 8] with a matrix."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("max 100000\n", math.inf),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("5000 0\n", math.inf),
        ("5000\n", math.inf),
        ("many 100000\n", math.inf),
        ("", math.inf),
    ],
)
def test_a_containers_quota_is_read(tmp_path: Path, text: str, wanted: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota_of(tmp_path / "cpu.max") == wanted


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert quota_of(tmp_path / "cpu.max") == math.inf


def test_processors_are_those_of_the_affinity_within_the_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000")
    assert available_processors(quota) == len(os.sched_getaffinity(0))
    quota.write_text("10000 100000")
    assert available_processors(quota) == 1


def test_a_given_number_of_threads_stays() -> None:
    assert session_threads(3) == 3


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the machine has one processor")
def test_a_session_on_one_processor_starts_no_threads(tmp_path: Path) -> None:
    save(product(), tmp_path / "g.onnx")
    command = [sys.executable, "-c", ONE_PROCESSOR, str(tmp_path / "g.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model name\t: EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("flags\t\t: fpu avx2 avx512f\n", True),
        ("flags\t\t: fpu avx2\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("", True),
    ],
)
def test_products_may_saturate_without_vnni(tmp_path: Path, text: str, wanted: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert may_saturate(tmp_path / "cpuinfo") is wanted


def test_products_of_an_unknown_processor_may_saturate(tmp_path: Path) -> None:
    assert may_saturate(tmp_path / "cpuinfo")


@pytest.mark.parametrize(("saturates", "wanted"), [(True, "1"), (False, "0")])
def test_a_session_asks_for_exact_products_only_where_they_may_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool, wanted: str
) -> None:
    """Elsewhere the option would cost two fifths of the speed."""
    monkeypatch.setattr(onnxruntime, "may_saturate", lambda: saturates)
    save(product(), tmp_path / "g.onnx")
    session = fast_session(tmp_path / "g.onnx")
    assert isinstance(session, onnxruntime.OnnxRuntimeSession)
    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == wanted
