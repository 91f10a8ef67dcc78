"""The torch-free base install says which packages a command needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from arvg_trt.extras import CPU_TORCH

from .test_ship_bad_input import with_reference

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from arvg_trt.cli import cli
cli(["export", "cosmos-mini-di8x8", sys.argv[1]])
"""


def test_export_without_torch_names_the_extra_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "ws")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: torch is not installed (pip install 'arvg-trt[export]'; before it, for PyTorch "
        f"without gigabytes of CUDA: {CPU_TORCH})"
    ]


WITHOUT_SCIPY = """
import sys
sys.modules["scipy"] = None
from arvg_trt.cli import cli
cli(["search", sys.argv[1], "--budget", "avg_bits<=5"])
"""


def test_search_without_scipy_names_the_extra_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_SCIPY, str(tmp_path / "ws")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: scipy is not installed (pip install 'arvg-trt[search]')"
    ]


WITHOUT_SCIKIT_IMAGE = """
import sys
sys.modules["skimage"] = None
from arvg_trt.cli import cli
cli(["validate", sys.argv[1]])
"""


def test_validation_of_a_bundle_names_the_extra_before_it_unpacks(tmp_path: Path) -> None:
    path = with_reference(tmp_path)
    command = [sys.executable, "-c", WITHOUT_SCIKIT_IMAGE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: scikit-image is not installed (pip install 'arvg-trt[report]')"
    ]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


BARE = """
import sys
for name in ("onnx", "onnx_ir", "polygraphy", "tensorrt_rtx", "tensorrt"):
    sys.modules[name] = None
from importlib import util
known = util.find_spec
def find(name, package=None):
    return known(name, package) if sys.modules.get(name, name) else None
util.find_spec = find
import arvg_trt.extras
from arvg_trt.cli import cli
cli(["build", "--from", sys.argv[1]])
"""


def test_a_build_from_a_bundle_names_the_builder_that_is_enough(tmp_path: Path) -> None:
    """It is the advice of `doctor`: [rtx] brings what [kit] does, and a builder."""
    command = [sys.executable, "-c", BARE, str(with_reference(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: building from a bundle takes a builder, and none is installed "
        "(pip install 'arvg-trt[rtx]', which is enough for an RTX GPU)"
    ]
