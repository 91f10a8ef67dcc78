"""The folders of a quantization that are compared: Q/DQ graphs, engines, half-precision copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import WorkspaceError
from ...workspace.facts import FP16, EngineFacts, facts
from ...workspace.manifest import Manifest
from ...workspace.stage import Reporter
from ...workspace.verify import verify
from ...workspace.workspace import Workspace
from ..report.schema import ENGINE, HALF_PRECISION, QDQ

EXECUTED = "onnxruntime"  # the folder of engines that a session here runs


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


def candidate_folders(
    workspace: Workspace, name: str, engines: Mapping[str, Manifest], reporter: Reporter
) -> dict[str, Path]:
    """Return the folder of each candidate's graphs; says which engines are not compared."""
    folders = {QDQ: workspace.folder("quantize", name)}
    own = [key for key in engines if key.startswith(f"{name}/") and EXECUTED not in key]
    copies = [key for key in own if facts(engines[key], EngineFacts, "options").half != "bfloat16"]
    for key in sorted({*own} - {*copies}):
        reporter.warn(
            f"{key} is not compared: ONNX Runtime does not compute in bfloat16 on the CPU"
        )
    if copies:
        # The same graph in every folder: targets differ in what is compiled from it.
        folders[HALF_PRECISION] = workspace.folder("engines", *copies[0].split("/"))
    if f"{name}/{EXECUTED}" in engines:
        folders[ENGINE] = workspace.folder("engines", name, EXECUTED)
    return folders
