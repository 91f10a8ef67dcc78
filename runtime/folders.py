"""Check the folders that a generator or a tokenizer is opened from, and choose what runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import BundleError, WorkspaceError
from ..extras import missing_packages
from ..workspace.facts import EngineFacts, facts
from ..workspace.files import decode_json
from ..workspace.lead import lead_from
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.verify import read_manifest, verify, workspace_of
from .devices import Device, this_device
from .families import EXPORT_FIRST, SPEC_FILE, read_family
from .sessions.open import context_path, engine_session, openvino_session
from .sessions.openvino_files import is_openvino
from .sessions.placement import (
    BY_OPENVINO,
    ON_CPU,
    PROVIDERS,
    TITLES,
    Placement,
    Problem,
    gpu_of,
    place_engine,
    place_graphs,
)
from .sessions.session import OpenSession, Session
from .spec import GeneratorSpec

CPU_BACKEND = "onnxruntime"  # of the engines that run on every CPU

OpenPlaced = Callable[[Path, int, Placement], Session]


@dataclass(frozen=True, slots=True)
class GraphsFolder:
    """Hold a folder with its manifest, None where there is none, and what a build says there."""

    path: Path
    manifest: Manifest | None
    built: EngineFacts

    @property
    def holds_engines(self) -> bool:
        """Say whether it has a GPU's engine files, or a manifest that lists a build of them."""
        return not self.built.on_cpu or any(self.path.glob("*.engine"))

    @property
    def runs_openvino(self) -> bool:
        return not self.holds_engines and is_openvino(self.path)


def read_folder(path: Path) -> GraphsFolder:
    """Read what a folder says of the graphs or engines in it."""
    manifest = read_manifest(path) if (path / MANIFEST).is_file() else None
    if manifest is None or manifest.stage != "build":
        return GraphsFolder(path, manifest, EngineFacts())
    return GraphsFolder(path, manifest, facts(manifest, EngineFacts, "options"))


def verified(folder: Path) -> Manifest:
    """Return the manifest of a folder of graphs.

    Raises:
        BundleError: it holds engines, beside which lie graphs that would run in FP16 on the CPU.
        WorkspaceError: it is not what its stage wrote, of what lies beside it now.
    """
    found = read_folder(folder)
    if found.holds_engines:
        raise refusal(found, Problem("a session of graphs was asked for", None))
    return verify(folder)


def read_spec(path: Path) -> tuple[Path, GeneratorSpec]:
    """Return the folder of the graphs, and the spec in its `generator.json`.

    Raises:
        WorkspaceError: there is none, or it cannot be read.
    """
    folder = graphs_folder(path)
    if not (folder / SPEC_FILE).is_file():
        lead = lead_from(path, "generator")
        raise WorkspaceError(lead.what, where=str(path), do=lead.do)
    family = read_family(folder)
    if family.spec is None:
        what = f"{family.name} is no family of generators"
        raise WorkspaceError(what, where=str(folder / SPEC_FILE), do=EXPORT_FIRST)
    return folder, decode_json(folder / SPEC_FILE, family.spec, do=EXPORT_FIRST)


def verified_spec(path: Path) -> tuple[Path, GeneratorSpec]:
    """Read the spec of a folder of graphs, that is as its stage wrote it.

    Raises:
        BundleError: it holds engines.
        WorkspaceError: there is no spec, it cannot be read, or the folder was changed.
    """
    folder = graphs_folder(path)
    if not any((folder / name).is_file() for name in (SPEC_FILE, MANIFEST)):
        return read_spec(path)  # raises the error that nothing is there
    verified(folder)
    return read_spec(path)


def placed_spec(path: Path, device: str = "auto") -> tuple[Path, GeneratorSpec]:
    """Read the spec of a folder of graphs or engines that run on a device, as its stage wrote it.

    Raises:
        BundleError: no such device, or engines that do not run there.
        WorkspaceError: there is no spec, it cannot be read, or the folder was changed.
    """
    folder = graphs_folder(path)
    found = read_folder(folder)
    if found.holds_engines:
        place_folder(found, device)  # why they do not run here comes before what was changed
    if any((folder / name).is_file() for name in (SPEC_FILE, MANIFEST)):
        verify(folder)
    return read_spec(path)


def graphs_folder(path: Path) -> Path:
    """Return a workspace's export, and any other folder itself."""
    own = any((path / name).is_file() for name in (SPEC_FILE, MANIFEST))
    return path if own or any(path.glob("*.engine")) else path / "export"


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
    them, or with OpenVINO if it compiled them. `static`: all shapes are fixed.

    Raises:
        BundleError: no such device, or nothing that runs these engines there.
    """
    found = read_folder(folder)
    placement = place_folder(found, device, allow_fallback=allow_fallback, static=static)
    if found.holds_engines:
        return partial(engine_session, placement=placement)
    if found.runs_openvino:
        return openvino_session

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

    An engine of ONNX Runtime was rewritten for the CPU, and runs there unless a GPU is named; one
    of OpenVINO runs nowhere else.

    Raises:
        BundleError: no such device, or nothing that runs these engines there.
    """
    return place_folder(
        read_folder(folder),
        device,
        allow_fallback=allow_fallback,
        static=static,
        machine=machine,
    )


def place_folder(
    folder: GraphsFolder,
    device: str,
    *,
    allow_fallback: bool = False,
    static: bool = False,
    machine: Device | None = None,
) -> Placement:
    """Return what `placement_of` does, of a folder that was read."""
    machine = machine or this_device()
    built = folder.built
    if folder.runs_openvino:
        problem = openvino_problem(device, machine)
        if problem is not None:
            raise refusal(folder, problem)
        return BY_OPENVINO
    if not folder.holds_engines:
        manifest = folder.manifest
        if device.lower() == "auto" and manifest is not None and manifest.stage == "build":
            return ON_CPU
        found = place_graphs(device, allow_fallback=allow_fallback, machine=machine)
    else:
        engine = problem_of_files(folder, machine) or place_engine(
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


def openvino_problem(device: str, machine: Device) -> Problem | None:
    """Return why engines of OpenVINO do not run on a device; they run on the CPU alone."""
    if device.lower() != "auto" and gpu_of(device, machine) is not None:
        return Problem("OpenVINO runs them on the CPU alone", "use --device cpu")
    if missing_packages(["openvino"]):
        return Problem("openvino is not installed", "pip install 'arvg-trt[openvino]'")
    return None


def problem_of_files(folder: GraphsFolder, machine: Device) -> Problem | None:
    """Return what a folder of engines lacks to be opened anywhere, or by the versions here."""
    built = folder.built
    if folder.manifest is None or built.backend not in PROVIDERS:
        return Problem(f"there is no {MANIFEST} that says what they were built for", None)
    engines = sorted(folder.path.glob("*.engine"))
    lacking = [engine.name for engine in engines if not has_context(engine)]
    if lacking:
        what = f"{lacking[0]} has no EPContext model beside it"
        return Problem(what, "remove the folder and build again")
    here = machine.rtx_version if built.backend == "tensorrt_rtx" else machine.tensorrt
    version = folder.manifest.versions.get(built.backend, "")
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


def refusal(folder: GraphsFolder, problem: Problem) -> BundleError:
    """Return the error of a folder of engines that do not run here, with the folder that does."""
    built = folder.built
    name = "OpenVINO" if folder.runs_openvino else TITLES.get(built.backend, "TensorRT")
    targets = f" for {' '.join(built.targets)}" if built.targets else ""
    other = instead(folder)
    return BundleError(
        f"holds {name} engines{targets}, which do not run here: {problem.what}",
        where=str(folder.path),
        do=f"{problem.do}; or {other}" if problem.do else other,
    )


def instead(folder: GraphsFolder) -> str:
    """Return the advice which folder to name instead."""
    root, _ = workspace_of(folder.path) if folder.manifest is not None else (None, None)
    if root is None:
        return "name ONNX Runtime engines, Q/DQ graphs or an export"
    shown = folder.path.parents[2] if len(folder.path.parents) > 2 else root
    folders = (
        ("engines", folder.built.name, CPU_BACKEND),
        ("quantize", folder.built.name),
        ("export",),
    )
    found = next((p for p in folders if root.joinpath(*p, MANIFEST).is_file()), None)
    if found is None:
        return "name ONNX Runtime engines, Q/DQ graphs or an export"
    return f"name {shown.joinpath(*found)}"
