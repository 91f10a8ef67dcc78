"""The folders of a quantization that are compared: Q/DQ graphs, engines, half-precision copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import BundleError, WorkspaceError
from ...runtime.devices import this_device
from ...runtime.folders import placement_of
from ...runtime.sessions.openvino_files import is_openvino
from ...runtime.sessions.placement import ON_CPU, gpu_of
from ...workspace.facts import FP16, EngineFacts, facts
from ...workspace.manifest import Manifest
from ...workspace.stage import Reporter
from ...workspace.verify import verify
from ...workspace.workspace import Workspace
from ..report.schema import ENGINE, HALF_PRECISION, QDQ

# Folders of engines for the CPU, the first that opens here is executed: the one that was found the
# faster, then what was built beside the engine that runs on every CPU.
CPU_ENGINES = ("cpu", "openvino", "openvino-bf16", "onnxruntime")


def engine_manifests(workspace: Workspace, name: str) -> dict[str, Manifest]:
    """Return the manifest of every engine folder of a quantization, and of the FP16 engines.

    Raises:
        WorkspaceError: an engine is not what was built, or is one of another quantization.
    """
    found = {}
    for each in (name, FP16):
        for folder in sorted((workspace.root / "engines" / each).glob("[!.]*/")):
            try:
                found[f"{each}/{folder.name}"] = verify(folder)
            except WorkspaceError as error:
                do = f"{error.do}, or leave engines out with --skip-engine"
                raise WorkspaceError(error.what, where=error.where, do=do) from error
    return found


@dataclass(frozen=True, slots=True)
class Executed:
    """Name the engine folder that is executed, if any, and the device that it runs on.

    `device` is `cpu` or `cuda:0`, `provider` what runs it there.
    """

    key: str | None
    device: str
    provider: str


def executed_engine(
    workspace: Workspace,
    name: str,
    engines: Mapping[str, Manifest],
    device: str,
    reporter: Reporter,
) -> Executed:
    """Choose the engine of a quantization that is executed on a device: cpu, cuda:0 or auto.

    On a GPU that is the first TensorRT engine that opens there, else, unless the GPU was asked for
    by name, one for the CPU.

    Raises:
        BundleError: no such device, or one that was asked for by name and runs no engine.
    """
    index = gpu_of(device, this_device())
    if index is not None:
        problems = []
        for key in engines:
            if not key.startswith(f"{name}/") or on_cpu(engines[key]):
                continue
            try:
                placement = placement_of(workspace.folder("engines", *key.split("/")), device)
            except BundleError as error:
                problems.append(error)
            else:
                return Executed(key, f"cuda:{placement.index}", placement.text)
        if device.lower() != "auto":
            raise problems[0] if problems else no_engine(name, device)
        for problem in problems:
            reporter.warn(f"{problem}; validated on the CPU")
    return executed_on_cpu(workspace, name, engines, reporter)


def executed_on_cpu(
    workspace: Workspace, name: str, engines: Mapping[str, Manifest], reporter: Reporter
) -> Executed:
    """Return the first engine for the CPU that opens here; says which others there are."""
    opened: Executed | None = None
    for key in (f"{name}/{folder}" for folder in CPU_ENGINES if f"{name}/{folder}" in engines):
        if opened is not None:
            reporter.warn(f"{key} is not validated: {opened.key} is, which comes first")
            continue
        folder = workspace.folder("engines", *key.split("/"))
        try:
            placement = placement_of(folder, "cpu") if is_openvino(folder) else ON_CPU
        except BundleError as error:
            reporter.warn(str(error))
        else:
            opened = Executed(key, "cpu", placement.text)
    return opened or Executed(None, "cpu", ON_CPU.text)


def on_cpu(manifest: Manifest) -> bool:
    """Return whether an engine is for the CPU, by the manifest of its folder."""
    return facts(manifest, EngineFacts, "options").on_cpu


def no_engine(name: str, device: str) -> BundleError:
    what = f"{name} has no TensorRT engine"
    return BundleError(what, where=f"--device {device}", do="build one, or use --device cpu")


def candidate_folders(
    workspace: Workspace,
    name: str,
    engines: Mapping[str, Manifest],
    executed: str | None,
    reporter: Reporter,
) -> dict[str, Path]:
    """Return the folder of each candidate's graphs; says which engines are not compared.

    `executed` names the engine that runs here.
    """
    folders = {QDQ: workspace.folder("quantize", name)}
    own = [key for key in engines if key.startswith(f"{name}/") and not on_cpu(engines[key])]
    copies = [key for key in own if facts(engines[key], EngineFacts, "options").half != "bfloat16"]
    for key in sorted({*own} - {*copies} - {executed}):
        reporter.warn(
            f"{key} is not compared: ONNX Runtime does not compute in bfloat16 on the CPU"
        )
    if copies:
        # The same graph in every folder: targets differ in what is compiled from it.
        folders[HALF_PRECISION] = workspace.folder("engines", *copies[0].split("/"))
    if executed is not None:
        folders[ENGINE] = workspace.folder("engines", *executed.split("/"))
    return folders
