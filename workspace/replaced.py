"""Refuse an export into a workspace whose later stages are of another model."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import WorkspaceError
from .facts import known_name, model_name
from .lead import export_of
from .manifest import MANIFEST, Manifest
from .workspace import Workspace

# What later stages leave in a workspace, by what a sentence calls one of them.
LATER = {
    "calibration": f"calibrate/{MANIFEST}",
    "quantization": f"quantize/*/{MANIFEST}",
    "engine": f"engines/*/*/{MANIFEST}",
    "report": f"validate/*/{MANIFEST}",
}


def require_same_model(workspace: Workspace, model: str, graphs: Collection[str] = ()) -> None:
    """Raise WorkspaceError where an export of `model` would replace another one's.

    `graphs` are the names of a user's own. An export alone is replaced, and so is one of the same
    model: its stages are run again.
    """
    exported = export_of(workspace.root)
    if exported is None or is_same(exported, model, graphs):
        return
    found = {noun: len(list(workspace.root.glob(place))) for noun, place in LATER.items()}
    held = [f"{n} {noun}{'s' if n > 1 else ''}" for noun, n in found.items() if n]
    if held:
        raise WorkspaceError(
            f"holds {model_name(exported)} with {', '.join(held)}",
            where=str(workspace.root),
            do=f"name another folder, or replace it by `arvg-trt export {model} … --force`",
        )


def is_same(exported: Manifest, model: str, graphs: Collection[str]) -> bool:
    """Return whether an export is of a model, by its name and, of a user's own, by its graphs."""
    own = exported.options.get("graphs") or ()
    return known_name(exported) == model and sorted(own) == sorted(graphs)
