"""Verify that a stage's folder holds what the stage wrote, from what lies beside it now.

Every command that reads a folder of graphs or engines asks `verify` first. Files are hashed once a
process. A folder that was copied out of its workspace has nothing beside it: its files are checked,
and what they were made from is not known.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from ..errors import WorkspaceError
from .files import decode_json, sha256_file
from .manifest import MANIFEST, Manifest
from .workspace import WORKSPACE_FILE

GENERATOR_FILE = "generator.json"
PACKED_FILE = "packed.json"  # of a folder whose weights are packed, and are expanded to be read
# Where a stage's folder lies in its workspace: export/, quantize/NAME/, engines/NAME/LABEL/.
PLACES = {
    "export": ("export", 1),
    "calibrate": ("calibrate", 1),
    "quantize": ("quantize", 2),
    "search": ("search", 2),
    "validate": ("validate", 2),
    "build": ("engines", 3),
}
# Names of a stage's outputs in errors of a later stage.
NOUNS = {"export": "export", "calibrate": "calibration", "quantize": "quantization"}
REMOVE = ", or remove the folder"


def verify(folder: Path) -> Manifest:
    """Return the manifest of a stage's folder, if the folder is as the stage left it.

    Raises:
        WorkspaceError: there is no manifest, a file is missing, was changed or added, or what the
            folder was made from has been made anew since; with the command that mends it.
    """
    if not (folder / MANIFEST).is_file():
        raise WorkspaceError(
            f"has no {MANIFEST}: what its files were made from is not known",
            where=str(folder),
            do=f"copy the whole folder, or run {likely_command(folder)} again",
        )
    manifest = read_manifest(folder)
    root, stage = workspace_of(folder)
    if stage not in (None, manifest.stage):
        raise WorkspaceError(
            f"holds what `arvg-trt {manifest.stage}` wrote",
            where=str(folder),
            do=f"remove it and run `arvg-trt {stage}` again",
        )
    require_files(folder, manifest, root)
    if root is not None:
        require_made_from(folder, manifest, root)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    return decode_json(folder / MANIFEST, Manifest, do="run the stage that wrote it again")


def workspace_of(folder: Path) -> tuple[Path, str] | tuple[None, None]:
    """Return the workspace that a folder lies in, and the stage whose place it has there."""
    place = Path(os.path.abspath(folder))
    for stage, (top, depth) in PLACES.items():
        if len(place.parents) >= depth and place.parts[-depth] == top:
            root = place.parents[depth - 1]
            if (root / WORKSPACE_FILE).is_file():
                return root, stage
    return None, None


def require_files(folder: Path, manifest: Manifest, root: Path | None) -> None:
    """Raise WorkspaceError unless the files of a stage are those it wrote."""
    for name, digest in manifest.outputs.items():
        path = folder / name
        if not path.is_file() and (folder / PACKED_FILE).is_file():
            raise WorkspaceError(
                "has packed weights, which `encode`, `decode` and `generate` expand",
                where=str(folder),
                do="for other commands expand it by `arvg-trt unpack FOLDER -o NEW`",
            )
        if not path.is_file():
            raise WorkspaceError("is missing", where=str(path), do=mend(folder, manifest, root))
        if sha256_file(path) != digest:
            edited = " --plan FILE" if name == "plan.json" else ""
            raise WorkspaceError(
                f"was changed after `arvg-trt {manifest.stage}` wrote it",
                where=str(path),
                do=mend(folder, manifest, root, edited),
            )
    for path in (*sorted(folder.glob("*.onnx")), folder / GENERATOR_FILE):
        if path.is_file() and path.name not in manifest.outputs:
            raise WorkspaceError(
                f"was not written by `arvg-trt {manifest.stage}`",
                where=str(path),
                do="remove it",
            )


def require_made_from(folder: Path, manifest: Manifest, root: Path) -> None:
    """Compare what a stage read with what lies in the workspace now, from the export on.

    Raises:
        WorkspaceError: an input was made anew, or the folder is another quantization's.
    """
    do = mend(folder, manifest, root)
    path = Path(os.path.abspath(folder))
    if manifest.stage == "build":
        name = manifest.options.get("name")
        if name != path.parent.name:
            raise WorkspaceError(
                f"holds the engine of the quantization {name}",
                where=str(folder),
                do=do + REMOVE,
            )
    for stage in sources(manifest.inputs):
        source = root / stage
        if stage == "quantize":
            source /= path.parent.name if manifest.stage == "build" else path.name
        if not (source / MANIFEST).is_file():
            continue
        made = read_manifest(source)
        require_made_from(source, made, root)  # names first what has to be made again first
        given = {n: d for n, d in manifest.inputs.items() if n.startswith(f"{stage}/")}
        now = made.as_inputs()
        odd = sorted(n for n in given.keys() | now.keys() if given.get(n) != now.get(n))
        if odd:
            # By an export of another model no command makes the folder's own again.
            held = f", if {made.options.get('model')} is to be its model now"
            more = held if stage == "export" else REMOVE if manifest.stage == "build" else ""
            raise WorkspaceError(
                f"was made from another {NOUNS[stage]}: {odd[0]} differs",
                where=str(folder),
                do=do + more,
            )


def sources(inputs: Iterable[str]) -> list[str]:
    """Return the stages whose outputs are among the names of a manifest's inputs."""
    found = {name.partition("/")[0] for name in inputs}
    return [stage for stage in reversed(NOUNS) if stage in found]


def mend(folder: Path, manifest: Manifest, root: Path | None, more: str = "") -> str:
    """Return the advice which command makes a stage's folder anew."""
    if root is None:
        return f"copy the folder again, or run `arvg-trt {manifest.stage}` again"
    return f"run `{command(folder, manifest, root)}{more}` again"


def command(folder: Path, manifest: Manifest, root: Path) -> str:
    """Return the command line of a stage, without what an export or calibration was given."""
    where = str(root) if folder.is_absolute() else os.path.relpath(root)
    path, options = Path(os.path.abspath(folder)), manifest.options
    words = ["arvg-trt", manifest.stage]
    if manifest.stage == "export":
        words.append(str(options.get("model", "MODEL")))
    words.append(where)
    if manifest.stage == "build":
        words += ["--name", path.parent.name, "--backend", str(options.get("backend"))]
        words += [word for sm in options.get("targets", ()) for word in ("--target", str(sm))]
        if options.get("half", "float16") != "float16":
            words += ["--half", str(options["half"])]
    elif manifest.stage in ("quantize", "validate", "search"):
        words += ["--name", path.name]
    return shlex.join(words)


def likely_command(folder: Path) -> str:
    """Return the command that wrote a folder without manifest, judged by where it lies."""
    parts = Path(os.path.abspath(folder)).parts
    for stage, (top, depth) in PLACES.items():
        if len(parts) > depth and parts[-depth] == top:
            return f"`arvg-trt {stage}`"
    return "the stage that wrote it"
