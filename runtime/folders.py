"""Check the folders that a generator or a tokenizer is opened from, and choose what runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import BundleError
from ..workspace.facts import EngineFacts, facts
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.verify import read_manifest, verify, workspace_of
from .devices import Device, this_device
from .sessions.open import context_path, engine_session
from .sessions.placement import (
    ON_CPU,
    PROVIDERS,
    TITLES,
    Placement,
    Problem,
    place_engine,
    place_graphs,
)
from .sessions.session import OpenSession, Session

CPU_BACKEND = "onnxruntime"

OpenPlaced = Callable[[Path, int, Placement], Session]


def verified(folder: Path) -> Manifest:
    """Return the manifest of a folder of graphs.

    Raises:
        BundleError: it holds engines, beside which lie graphs that would run in FP16 on the CPU.
        WorkspaceError: it is not what its stage wrote, of what lies beside it now.
    """
    if holds_engines(folder):
        raise refusal(folder, Problem("a session of graphs was asked for", None))
    return verify(folder)


def holds_engines(folder: Path) -> bool:
    """Return whether a folder has engine files, or a manifest that lists a build of them."""
    _, built = built_facts(folder)
    return built.backend != CPU_BACKEND or any(folder.glob("*.engine"))


def built_facts(folder: Path) -> tuple[Manifest | None, EngineFacts]:
    """Return a folder's manifest, and what a build says there of its engines."""
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    if manifest is None or manifest.stage != "build":
        return manifest, EngineFacts()
    return manifest, facts(manifest, EngineFacts, "options")


def opener(
    folder: Path,
    graphs: OpenPlaced,
    device: str = "auto",
    *,
    allow_fallback: bool = False,
    static: bool = False,
) -> OpenSession:
    """Return what opens the graphs of a folder on a `device`: cpu, cuda:0, or auto.

    `graphs` opens a graph that is no engine. Engines are opened by the EPContext models beside
    them. `static`: all shapes are fixed.

    Raises:
        BundleError: no such device, or nothing that runs these engines there.
    """
    placement = placement_of(folder, device, allow_fallback=allow_fallback, static=static)
    if holds_engines(folder):
        return partial(engine_session, placement=placement)

    def opened(path: Path, threads: int) -> Session:
        return graphs(path, threads, placement)

    return opened


def placement_of(
    folder: Path,
    device: str = "auto",
    *,
    allow_fallback: bool = False,
    static: bool = False,
    machine: Device | None = None,
) -> Placement:
    """Return where the graphs or engines of a folder run on a `device`.

    An engine of ONNX Runtime was rewritten for the CPU, and runs there unless a GPU is named.

    Raises:
        BundleError: no such device, or nothing that runs these engines there.
    """
    machine = machine or this_device()
    manifest, built = built_facts(folder)
    if not holds_engines(folder):
        if device.lower() == "auto" and manifest is not None and manifest.stage == "build":
            return ON_CPU
        found = place_graphs(device, allow_fallback=allow_fallback, machine=machine)
    else:
        engine = problem_of_files(folder, manifest, built, machine) or place_engine(
            PROVIDERS[built.backend],
            [int(target.removeprefix("sm")) for target in built.targets],
            device,
            allow_fallback=allow_fallback,
            machine=machine,
        )
        if isinstance(engine, Problem):
            raise refusal(folder, engine)
        found = engine
    return replace(found, static=static)


def problem_of_files(
    folder: Path, manifest: Manifest | None, built: EngineFacts, machine: Device
) -> Problem | None:
    """Return what a folder of engines lacks to be opened anywhere, or by the versions here."""
    if manifest is None or built.backend not in PROVIDERS:
        return Problem(f"there is no {MANIFEST} that says what they were built for", None)
    lacking = [engine.name for engine in sorted(folder.glob("*.engine")) if not has_context(engine)]
    if lacking:
        what = f"{lacking[0]} has no EPContext model beside it"
        return Problem(what, "remove the folder and build again")
    here = machine.rtx_version if built.backend == "tensorrt_rtx" else machine.tensorrt
    version = manifest.versions.get(built.backend, "")
    if machine.gpus and here and version and not same_release(here, version):
        title = TITLES[built.backend]
        what = f"{title} {version} built them, and {here} is installed: they open in one release"
        return Problem(what, "install that version, or build them again")
    return None


def has_context(engine: Path) -> bool:
    """Return whether the EPContext model of an engine lies beside it."""
    return context_path(engine).is_file()


def same_release(one: str, other: str) -> bool:
    """Return whether two versions are of one release, as far as both of them say it.

    NVIDIA promises that an engine opens in the release that built it, and in no other.
    """
    pairs = zip(one.split(".")[:3], other.split(".")[:3], strict=False)
    return all(a == b for a, b in pairs)


def refusal(folder: Path, problem: Problem) -> BundleError:
    """Return the error of a folder of engines that do not run here, with the folder that does."""
    manifest, built = built_facts(folder)
    name = TITLES.get(built.backend, "TensorRT")
    targets = f" for {' '.join(built.targets)}" if built.targets else ""
    other = instead(folder, manifest, built)
    return BundleError(
        f"holds {name} engines{targets}, which do not run here: {problem.what}",
        where=str(folder),
        do=f"{problem.do}; or {other}" if problem.do else other,
    )


def instead(folder: Path, manifest: Manifest | None, built: EngineFacts) -> str:
    """Return the advice which folder to name instead."""
    root, _ = workspace_of(folder) if manifest is not None else (None, None)
    if root is None:
        return "name ONNX Runtime engines, Q/DQ graphs or an export"
    shown = folder.parents[2] if len(folder.parents) > 2 else root
    folders = (
        ("engines", built.name, CPU_BACKEND),
        ("quantize", built.name),
        ("export",),
    )
    found = next((p for p in folders if root.joinpath(*p, MANIFEST).is_file()), None)
    if found is None:
        return "name ONNX Runtime engines, Q/DQ graphs or an export"
    return f"name {shown.joinpath(*found)}"
