"""Say of a folder without the wanted graphs what it is, and which one to name instead."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ArvgError, bounded
from .facts import CPU_BACKENDS, ModelKind, kind_of, model_name
from .manifest import MANIFEST, Manifest
from .verify import PACKED_FILE, read_manifest
from .workspace import WORKSPACE_FILE

FOR_GPUS = ("kit", "rtx-", "tensorrt-")  # begin the names of folders
DEPTH = 3  # folders from a workspace down to its engines
TITLES: dict[ModelKind, str] = {
    "generator": "a generator of images",
    "tokenizer": "an image tokenizer",
    "custom": "an ONNX model of your own",
}
# What takes a folder, by the kind of its model.
TAKEN_BY: dict[ModelKind, str] = {
    "generator": "`arvg-trt generate` takes it",
    "tokenizer": "`arvg-trt encode` and `decode` take it",
    "custom": "any program with ONNX Runtime opens its graphs",
}


class Lead(NamedTuple):
    """Hold what is wrong with a folder, and what to do."""

    what: str
    do: str


def lead_from(path: Path, wants: Literal["generator", "tokenizer"]) -> Lead:
    """Return why a path holds no model of the kind that one `wants`, and what to name instead."""
    root = workspace_above(path)
    exported = None if root is None else export_of(root)
    if exported is not None and kind_of(exported) != wants:
        kind = kind_of(exported)
        what = f"holds {model_name(exported)}, {TITLES[kind]}, not {TITLES[wants]}"
        return Lead(what, f"{TAKEN_BY[kind]}; `arvg-trt models` lists others")
    found = folders_of_graphs(path)
    if found:
        named = bounded([str(path / each) for each in found], "folders")
        return Lead("has no graphs of its own", f"name {named}")
    if root is not None and exported is None:
        return Lead(
            "is in a workspace without an export", f"run `arvg-trt export MODEL {root}` first"
        )
    if root is not None:
        return Lead("has no graphs", f"name {root}, or a folder of engines in it")
    do = "name a workspace, a folder of graphs or engines in it, or a bundle"
    return Lead(f"holds no model, where {TITLES[wants]} is wanted", do)


def workspace_above(path: Path) -> Path | None:
    """Return the workspace that a path is, or lies in."""
    near = [path, *path.parents][: DEPTH + 1]
    return next((place for place in near if (place / WORKSPACE_FILE).is_file()), None)


def export_of(root: Path) -> Manifest | None:
    """Return the manifest of a workspace's export; None if there is none that can be read."""
    if not (root / "export" / MANIFEST).is_file():
        return None
    try:
        return read_manifest(root / "export")
    except ArvgError:  # the folder that was named is what the error is about
        return None


def folders_of_graphs(path: Path) -> list[str]:
    """Return the folders below a path that a stage left graphs or engines in, relative to it.

    What opens on every machine comes first, and what takes a GPU last.
    """
    found = [m.parent for k in range(1, DEPTH + 1) for m in sorted(path.glob("*/" * k + MANIFEST))]
    return [
        folder.relative_to(path).as_posix()
        for folder in sorted(found, key=rank)
        if (any(folder.glob("*.onnx")) or (folder / PACKED_FILE).is_file())
        and not folder.name.startswith(".")
    ]


def rank(folder: Path) -> int:
    """Return 0 for a folder of the CPU's engines, 2 for one of a GPU's or a kit, 1 for others."""
    if folder.name in CPU_BACKENDS:
        return 0
    return 2 if folder.name.startswith(FOR_GPUS) else 1
