"""Processes import nothing from the current directory of the one that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import arvg_trt
from arvg_trt.calibrate import executors
from arvg_trt.errors import ExportError
from arvg_trt.export.shape import DYNAMIC
from arvg_trt.families.shared.isolated_export import ModelTask
from arvg_trt.workspace.child_python import in_library, module_command
from arvg_trt.workspace.worker_process import run_isolated

ROOT = Path(str(arvg_trt.__file__)).resolve().parents[1]
# Each would be imported by what starts a child process, by this package or by torch.
HOSTILE = (
    *("random.py", "pickle.py", "runpy.py", "socket.py", "tempfile.py", "importlib/__init__.py"),
    *("click.py", "msgspec.py", "numpy/__init__.py", "triton/__init__.py"),
)
POOL = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from arvg_trt.workspace import child_python

if __name__ == "__main__":
    with getattr(child_python, sys.argv[1])():
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        found = pool.submit(eval, "__import__('random').__file__")
    print(found.result())
    pool.shutdown()
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory whose modules leave a mark where they are imported."""
    folder = tmp_path / "hostile"
    for name in HOSTILE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def imported(folder: Path) -> str:
    mark = folder.parent / "mark"
    return mark.read_text() if mark.exists() else ""


def printed(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_marks_are_left_by_python_m(hostile: Path) -> None:
    """Guards the tests below against modules that nothing would import anyway."""
    subprocess.run([sys.executable, "-m", "arvg_trt.families.shared.isolated_export"])
    assert "runpy.py" in imported(hostile) or "importlib" in imported(hostile)


def test_a_worker_imports_nothing_from_the_current_directory(hostile: Path) -> None:
    task = ModelTask(
        what="compare",
        model="var",
        spec="the checkpoint",
        paths=(str(hostile / "none.pth"),),
        images=(),
        folder=".",
        form=DYNAMIC,
    )
    with pytest.raises(ExportError, match="no such file"):  # torch is imported by then
        run_isolated("arvg_trt.families.shared.isolated_export", task, dict)
    assert imported(hostile) == ""


def test_a_module_gets_its_arguments_and_the_rest_of_the_path(hostile: Path) -> None:
    found = printed(*module_command("site"))
    assert str(ROOT) in found and str(hostile) not in found.split("]")[0]
    assert "''" not in found
    version = printed(*module_command("arvg_trt", "--version"))
    assert version.startswith("arvg-trt, version ") and imported(hostile) == ""


def test_safe_path_keeps_all_that_is_left(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONSAFEPATH there is no entry to drop: the first is one of PYTHONPATH."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert str(ROOT) in printed(*module_command("site"))


def test_a_package_that_only_the_current_directory_has_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert printed(*module_command("arvg_trt", "--version")).startswith("arvg-trt, version ")


@pytest.mark.parametrize("way", ["outside_current_directory", "in_library"])
def test_a_pool_imports_nothing_from_the_current_directory(hostile: Path, way: str) -> None:
    """The second way is the one of Python 3.10."""
    driver = hostile.parent / "driver.py"
    driver.write_text(POOL)
    random = Path(printed(sys.executable, str(driver), way).strip())
    assert imported(hostile) == "" and random.parent == Path(os.__file__).parent


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_tasks_work_in_the_current_directory(
    executor: executors.ExecutorName, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on Python 3.10, whose pools are started elsewhere, as Ray is."""
    monkeypatch.setattr(executors, "outside_current_directory", in_library)
    execution = executors.Execution(executor, 1, 1)
    executors.run_tasks(execution, os.mkdir, ["made"], lambda count: None)
    assert (hostile / "made").is_dir() and imported(hostile) == ""


def test_in_library_returns_after_an_error(hostile: Path) -> None:
    with pytest.raises(ZeroDivisionError), in_library():
        raise ZeroDivisionError
    assert Path.cwd() == hostile


def test_ray_imports_nothing_from_the_current_directory(hostile: Path) -> None:
    pytest.importorskip("ray")
    with executors.ray_session() as ray:
        path = ray.get(ray.remote(lambda: __import__("sys").path).remote())
    assert str(hostile) not in path and "" not in path
    assert imported(hostile) == ""


def test_python_m_of_the_command_imports_nothing_from_the_current_directory(
    hostile: Path,
) -> None:
    for name in ("runpy.py", "importlib/__init__.py"):  # imported before any line of the package
        (hostile / name).unlink()
    (hostile / "importlib").rmdir()
    printed(sys.executable, "-m", "arvg_trt", "--version")
    assert imported(hostile) == ""
