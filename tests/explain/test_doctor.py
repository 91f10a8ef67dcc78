"""Doctor says what is missing or broken, and how to mend it, and never breaks itself."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from arvg_trt.errors import ArvgError
from arvg_trt.explain import doctor
from arvg_trt.explain.doctor import Check, cache_row, kit_rows, onnxruntime_row
from arvg_trt.runtime import trt_compat
from arvg_trt.runtime.sessions.library import load_onnxruntime

RUN = "import sys; from arvg_trt.cli import main; sys.argv[1:] = {words!r}; main()"
HIDDEN = "import sys; sys.modules['onnxruntime'] = None; "


def hidden(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has no ONNX Runtime."""
    code = HIDDEN + RUN.format(words=list(words))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def half_removed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that finds the folders alone that a removed wheel left."""
    (folder / "onnxruntime" / "tools").mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); " + FIRST
    code += RUN.format(words=list(words))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# A folder without an `__init__` is found only where no package of that name is: the finder of
# the tests' own environment is told to leave the name alone.
FIRST = """
import importlib.machinery
real = importlib.machinery.PathFinder.find_spec
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "onnxruntime":
            return real(name, sys.path[:1], target)
sys.meta_path.insert(0, Finder)
"""


def test_doctor_without_onnxruntime_says_how_to_install_it() -> None:
    done = hidden("doctor")
    assert done.returncode == 0 and not done.stderr, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.split()[1:2] == ["onnxruntime"])
    assert "onnxruntime is not installed: pip install onnxruntime" in line
    assert line.split()[0] in ("missing", "problem")


def test_doctor_with_half_of_onnxruntime_says_how_to_mend_it(tmp_path: Path) -> None:
    done = half_removed(tmp_path, "doctor")
    assert done.returncode == 0 and not done.stderr, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.split()[1:2] == ["onnxruntime"])
    assert "installed in part and does not load" in line and "pip install" in line
    assert line.split()[0] in ("missing", "problem")


COMMANDS = (
    ("verify", "FILE"),
    ("encode", "FILE", "FILE", "-o", "t.npz"),
    ("decode", "FILE", "FILE", "-o", "new"),
    ("generate", "FILE", "--labels", "1", "-o", "new"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_other_commands_without_onnxruntime_end_with_one_line(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    given = [str(file) if word == "FILE" else word for word in words]
    done = hidden(*given)
    assert done.returncode == ArvgError.exit_code, done
    said = "error: onnxruntime is not installed (pip install onnxruntime)"
    assert done.stderr.strip().splitlines() == [said]


def test_encode_with_half_of_onnxruntime_ends_with_one_line(tmp_path: Path) -> None:
    done = half_removed(tmp_path, "encode", str(tmp_path), "x.png", "-o", "t.npz")
    assert done.returncode == ArvgError.exit_code, done
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: onnxruntime is installed in part and does not load")
    assert "pip install" in line


def test_the_onnxruntime_of_this_machine_is_ok() -> None:
    assert load_onnxruntime().__name__ == "onnxruntime"
    assert onnxruntime_row().state == "ok"


def by_name(rows: list[Check]) -> dict[str, Check]:
    return {row.what: row for row in rows}


def test_a_kit_has_a_block_of_its_own_with_its_own_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = by_name(kit_rows())
    assert {row.use for row in rows.values()} == {"kit"}
    assert list(rows) == ["onnx", "onnx-ir", "polygraphy", "tensorrt_rtx", "tensorrt"]
    assert {row.state for row in rows.values()} == {"missing"}
    assert "pip install 'arvg-trt[kit]'" in rows["onnx"].detail
    assert "[export]" not in " ".join(row.detail for row in rows.values())
    assert "'arvg-trt[rtx]', which is enough alone" in rows["tensorrt_rtx"].detail


def test_on_a_jetson_tensorrt_is_that_of_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(platform, "machine", lambda: trt_compat.JETSON)
    row = by_name(kit_rows())["tensorrt"]
    assert "TensorRT of JetPack itself" in row.detail and "nvidia.com" not in row.detail


def test_a_cache_is_written_to_before_it_is_called_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ARVG_TRT_CACHE", str(folder))
    assert cache_row().state == "ok" and not folder.exists()
    folder.mkdir()
    assert cache_row().state == "ok" and not list(folder.iterdir())


LIMITED = """
import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from arvg_trt.explain.doctor import cache_row
row = cache_row(); print(row.state, row.detail)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files, and /proc, are of Linux")
@pytest.mark.parametrize(("place", "reason"), [("full", "File too large"), ("/proc", "")])
def test_a_full_or_read_only_cache_is_a_problem(
    place: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / place
    if place == "full":
        folder.mkdir()
    monkeypatch.setenv("ARVG_TRT_CACHE", str(folder))
    if place == "full":
        code = [sys.executable, "-c", LIMITED]
        said = subprocess.run(code, capture_output=True, text=True, check=True).stdout
        assert not list(folder.iterdir())
    else:
        row = cache_row()
        said = f"{row.state} {row.detail}"
    assert (
        said.startswith("problem ") and f"{folder}: nothing can be written here: {reason}" in said
    )
    assert "set ARVG_TRT_CACHE to another folder" in said
