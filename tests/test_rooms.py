"""Who may import whom: a room imports rooms of lower floors only, and the edge stays light."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
# From the ground up. Rooms of one floor do not import each other.
FLOORS = (
    ("errors",),
    ("extras", "numerics"),
    ("workspace",),
    ("recipe", "graph"),
    ("runtime",),
    ("samples", "export"),
    ("families",),
    ("calibrate",),
    ("quantize",),
    ("engines",),
    ("validate",),
    ("pipeline",),
    ("api", "explain", "ci"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "skimage", "matplotlib", "jinja2", "scipy"}
LIGHT_OF_A_FAMILY = {
    *("__init__.py", "base.py", "variants.py", "config.py", "spec.py", "loop.py"),
    *("diffusion.py", "trajectory.py", "recorded_runs.py", "image_runs.py"),  # of MAR's recording
}
MOST_MODULES = 17  # of a folder, without its __init__
MOST_LINES = 300  # of a module: a longer one has a second idea, which gets a module of its own
BESIDE = ("benchmarks", "demo", "release", "tests", "training")  # folders that are not installed


def modules() -> Iterator[Path]:
    """Every module of the packages that are installed, relative to the root."""
    settings = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())
    for package in settings["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        yield from (path.relative_to(ROOT) for path in sorted(folder.glob("*.py")))


@cache
def nodes(relative: Path) -> tuple[ast.AST, ...]:
    """Every node of a module's tree."""
    return tuple(ast.walk(ast.parse((ROOT / relative).read_text())))


@cache
def imported(relative: Path) -> set[str]:
    """Full names of what a module imports anywhere in it, relative ones resolved."""
    package = ("arvg_trt", *relative.parts[:-1])
    found: set[str] = set()
    for node in nodes(relative):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *([node.module] if node.module else [])))
            found.update(f"{prefix}.{alias.name}" for alias in node.names)
    return found


def room_of(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")


def rooms_of(relative: Path) -> set[str]:
    """The parts of this package that a module imports, by the first name below its root."""
    names = (name.split(".") for name in imported(relative))
    return {parts[1] for parts in names if parts[0] == "arvg_trt" and len(parts) > 1}


def upward(relative: Path) -> set[tuple[str, str]]:
    """Pairs of a module's room and a room of its own or a higher floor that it imports."""
    room = room_of(relative)
    others = rooms_of(relative) & set(FLOOR) - {room}
    return {(room, other) for other in others if FLOOR[other] >= FLOOR[room]}


def is_light(relative: Path) -> bool:
    """Return whether a module runs on the edge, where there is neither torch nor onnx."""
    if room_of(relative) == "families":
        return relative.name in LIGHT_OF_A_FAMILY
    return room_of(relative) in ("errors", "extras", "runtime", "recipe", "workspace")


def test_the_walk_sees_every_room() -> None:
    """Guards the rules below against a walk that finds nothing."""
    found = list(modules())
    assert {room_of(path) for path in found} == {*FLOOR, "__init__"}
    assert len(found) == len(set(found)) > 200
    for room in FLOOR:  # a package that is not listed would not be installed
        packages = {path.parent for path in (ROOT / room).rglob("__init__.py")}
        assert {p.relative_to(ROOT) for p in packages} <= {path.parent for path in found}
    assert "samples" in rooms_of(Path("engines/onnxruntime/build.py"))
    assert "arvg_trt.errors.BundleError" in imported(Path("runtime/sessions/onnxruntime.py"))


@pytest.mark.parametrize("path", list(modules()), ids=str)
def test_module_imports_only_rooms_of_lower_floors(path: Path) -> None:
    if room_of(path) != "__init__":  # the public face sees all
        assert not upward(path)


def generators() -> set[str]:
    """Folders of the families that generate images."""
    return {path.parts[1] for path in modules() if path.match("families/*/spec.py")}


def test_the_walk_sees_generators_and_who_imports_them() -> None:
    assert {"mar", "par", "rar", "var"} <= generators() < set(os.listdir(ROOT / "families"))
    assert families_of(Path("families/var/export.py")) >= {"shared", "var_vqvae"}


def families_of(relative: Path) -> set[str]:
    """Folders and modules of `families` that a module imports."""
    names = (name.split(".") for name in imported(relative))
    return {parts[2] for parts in names if parts[:2] == ["arvg_trt", "families"] and parts[2:]}


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) == "families"], ids=str)
def test_a_family_imports_no_generator_but_itself(path: Path) -> None:
    assert not families_of(path) & generators() - {path.parts[1]}


@pytest.mark.parametrize("path", [p for p in modules() if is_light(p)], ids=str)
def test_the_edge_imports_nothing_that_it_lacks(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(path)} & HEAVY


def test_no_folder_holds_more_modules_than_a_reader_takes_in() -> None:
    beside = (p.relative_to(ROOT) for r in BESIDE for p in (ROOT / r).rglob("*.py"))
    every = [path for path in (*modules(), *beside) if path.name != "__init__.py"]
    assert {path.parts[0] for path in every} >= set(BESIDE)
    sizes = Counter(path.parent for path in every)
    large = {str(folder) for folder, size in sizes.items() if size > MOST_MODULES}
    assert not large


def test_no_module_is_longer_than_one_idea() -> None:
    beside = [p.relative_to(ROOT) for r in ("benchmarks", "training") for p in rooms_files(r)]
    lines = {str(path): count_lines(path) for path in (*modules(), *beside)}
    assert {Path(name).parts[0] for name in lines} >= {"runtime", "benchmarks", "training"}
    assert max(lines.values()) > 200  # the walk reads files
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def rooms_files(room: str) -> Iterator[Path]:
    return (ROOT / room).rglob("*.py")


def count_lines(relative: Path) -> int:
    return len((ROOT / relative).read_text().splitlines())


def test_stages_only_check_call_and_write() -> None:
    """The rooms below hold what they call; a stage that grows has taken some of it."""
    lines = [
        len((ROOT / p).read_text().splitlines()) for p in modules() if room_of(p) == "pipeline"
    ]
    assert 0 < sum(lines) < 2000


def test_only_the_door_imports_tensorrt() -> None:
    users = {
        str(path)
        for path in modules()
        if {name.partition(".")[0] for name in imported(path)} & {"tensorrt", "tensorrt_rtx"}
    }
    by_name = {
        str(path)
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func)
    }
    assert users <= {"runtime/trt_compat.py"}
    assert by_name == {"__init__.py", "runtime/trt_compat.py"}


# Modules beside the package that name ONNX Runtime themselves, and why.
PEER = "measures ONNX Runtime's own quantization"
JUDGE = "runs what we write in a session that is not ours"
OF_SESSIONS = "tests the session itself"
NAME_ONNXRUNTIME = {
    "benchmarks/ablation/peers.py": PEER,
    "benchmarks/calibration/variants.py": PEER,
    "benchmarks/foreign/models.py": PEER,
    "benchmarks/peers.py": PEER,
    "benchmarks/generate/generate.py": "times the runs inside ONNX Runtime",
    "benchmarks/generate/node_profile.py": "reads ONNX Runtime's profile of each node",
    "tests/calibrate/observers/test_reduce.py": JUDGE,
    "tests/engines/bundle/triton_server.py": JUDGE,
    "tests/engines/tensorrt/test_half_precision.py": JUDGE,
    "tests/families/generators.py": JUDGE,
    "tests/graph/text.py": JUDGE,
    "tests/quantize/qdq/test_convolution.py": JUDGE,
    "tests/quantize/qdq/test_linear.py": JUDGE,
    "tests/runtime/test_device_memory.py": OF_SESSIONS,
    "tests/runtime/test_placement.py": OF_SESSIONS,
    "tests/runtime/test_processors.py": OF_SESSIONS,
    "tests/runtime/test_sessions.py": OF_SESSIONS,
    "tests/test_rooms.py": "names it to look for it",
    "validate/opinion/by_polygraphy.py": "its opinion is to be another than our session has",
}
SESSION_CLASS = "OnnxRuntimeSession"


def names_onnxruntime(relative: Path) -> bool:
    """Return whether a module imports ONNX Runtime, or our session of it, or names its class."""
    names = imported(relative)
    if {name.partition(".")[0] for name in names} & {"onnxruntime"}:
        return True
    if any("runtime.sessions.onnxruntime" in name for name in names):
        return True
    return SESSION_CLASS in (ROOT / relative).read_text()


def test_only_sessions_know_onnxruntime() -> None:
    """Another back end of sessions changes nothing outside their folder."""
    beside = (p.relative_to(ROOT) for room in BESIDE for p in (ROOT / room).rglob("*.py"))
    every = {path.as_posix(): path for path in (*modules(), *beside)}
    found = {name for name, path in every.items() if names_onnxruntime(path)}
    inside = {name for name in found if name.startswith("runtime/sessions/")}
    assert {"runtime/sessions/onnxruntime.py", "runtime/sessions/providers.py"} <= inside
    assert found - inside == NAME_ONNXRUNTIME.keys()
