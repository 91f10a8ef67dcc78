"""Who may import whom: `runtime` is the foundation, the other rooms never import each other."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
ROOMS = ("calibrate", "engines", "export", "runtime", "validate")
COMMANDS = (
    "cli",
    "cli_analyze",
    "cli_calibrate",
    "cli_images",
    "cli_info",
    "cli_search",
    "cli_stage",
)
SEES_ALL = ("pipeline", *COMMANDS, "__main__")
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "skimage", "matplotlib", "jinja2", "scipy"}


def modules() -> Iterator[Path]:
    """Every module of the packages that are installed, relative to the root."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in settings["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        yield from (path.relative_to(ROOT) for path in sorted(folder.glob("*.py")))


def imported(relative: Path) -> set[str]:
    """Full names of what a module imports anywhere in it, relative ones resolved."""
    package = ("arvg_trt", *relative.parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / relative).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *([node.module] if node.module else [])))
            found.update(f"{prefix}.{alias.name}" for alias in node.names)
    return found


def rooms_of(relative: Path) -> set[str]:
    """The parts of this package that a module imports, by the first name below its root."""
    names = (name.split(".") for name in imported(relative))
    return {parts[1] for parts in names if parts[0] == "arvg_trt" and len(parts) > 1}


def test_the_walk_sees_every_room() -> None:
    """Guards the rules below against a walk that finds nothing."""
    found = list(modules())
    assert {path.parts[0] for path in found} >= {*ROOMS, "pipeline", "cli.py", "errors.py"}
    assert len(found) == len(set(found)) > 40
    for room in (*ROOMS, "pipeline"):  # a package that is not listed would not be installed
        packages = {path.parent for path in (ROOT / room).rglob("__init__.py")}
        assert {p.relative_to(ROOT) for p in packages} <= {path.parent for path in found}
    assert "runtime" in rooms_of(Path("engines/onnxruntime/build.py"))
    assert "arvg_trt.samples.files.GraphChain" in imported(Path("engines/onnxruntime/build.py"))
    assert "arvg_trt.errors.BundleError" in imported(Path("runtime/sessions/onnxruntime.py"))


@pytest.mark.parametrize("path", list(modules()), ids=str)
def test_module_imports_only_the_rooms_it_may(path: Path) -> None:
    room = path.parts[0].removesuffix(".py")
    others = {*ROOMS, *SEES_ALL} - {room}
    if room in SEES_ALL:
        return
    allowed = {"runtime"} if room in ROOMS and room != "runtime" else set()
    assert rooms_of(path) & others <= allowed


@pytest.mark.parametrize("path", [p for p in modules() if p.parts[0] == "runtime"], ids=str)
def test_runtime_imports_nothing_that_the_edge_lacks(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(path)} & HEAVY


def test_only_the_door_imports_tensorrt() -> None:
    users = {
        str(path)
        for path in modules()
        if {name.partition(".")[0] for name in imported(path)} & {"tensorrt", "tensorrt_rtx"}
    }
    by_name = {
        str(path)
        for path in modules()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func)
    }
    assert users | by_name <= {"runtime/trt_compat.py"}
    assert by_name == {"runtime/trt_compat.py"}
