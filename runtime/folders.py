"""Check the folders that a generator or a tokenizer is opened from."""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError
from ..workspace.facts import EngineFacts, facts
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.verify import read_manifest, verify, workspace_of

CPU_BACKEND = "onnxruntime"
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def verified(folder: Path) -> Manifest:
    """Return the manifest of a folder that a session can run.

    Raises:
        BundleError: it holds engines that no session here runs.
        WorkspaceError: it is not what its stage wrote, of what lies beside it now.
    """
    require_session(folder)
    return verify(folder)


def require_session(folder: Path) -> None:
    """Raise BundleError for TensorRT engines, which no session here runs.

    The graphs beside them are what they were built from, and would run in FP16 on the CPU.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    built = EngineFacts()
    if manifest is not None and manifest.stage == "build":
        built = facts(manifest, EngineFacts, "options")
    if built.backend == CPU_BACKEND and not any(folder.glob("*.engine")):
        return
    name = TITLES.get(built.backend, "TensorRT")
    targets = " ".join(built.targets)
    raise BundleError(
        f"holds {name} engines{f' for {targets}' if targets else ''}, which arvg-trt builds and "
        "does not run; on the CPU run ONNX Runtime engines, Q/DQ graphs and exports",
        where=str(folder),
        do=instead(folder, manifest, built),
    )


def instead(folder: Path, manifest: Manifest | None, built: EngineFacts) -> str:
    """Return the advice which folder to name instead."""
    root, _ = workspace_of(folder) if manifest is not None else (None, None)
    if root is None:
        return "name one of those"
    shown = folder.parents[2] if len(folder.parents) > 2 else root
    folders = (
        ("engines", built.name, CPU_BACKEND),
        ("quantize", built.name),
        ("export",),
    )
    found = next((p for p in folders if root.joinpath(*p, MANIFEST).is_file()), None)
    return f"name {shown.joinpath(*found)}" if found else "name one of those"
