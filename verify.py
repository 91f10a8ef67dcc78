"""Whether a stage's folder holds what the stage wrote, made from what lies beside it now.

Every command that reads a folder of graphs or engines asks `verify` first. Files are hashed once a
process. A folder that was copied out of its workspace has nothing beside it: its files are checked,
and what they were made from is not known.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from .artifacts import MANIFEST, WORKSPACE_FILE, Manifest, decode_json, sha256_file
from .errors import WorkspaceError

GENERATOR_FILE = "generator.json"
# How deep a stage's folder lies in its workspace: export/, quantize/NAME/, engines/NAME/LABEL/.
DEPTH = {"export": 1, "calibrate": 1, "quantize": 2, "search": 2, "validate": 2, "build": 3}
SOURCES = ("export", "calibrate", "quantize")
REMOVE = ", or remove the folder"


def verify(folder: Path) -> Manifest:
    """The manifest of a stage's folder, once the folder was found to be as the stage left it.

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
    root = workspace_of(folder, manifest.stage)
    require_files(folder, manifest, root)
    if root is not None:
        require_made_from(folder, manifest, root)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    return decode_json(folder / MANIFEST, Manifest, do="run the stage that wrote it again")


def workspace_of(folder: Path, stage: str) -> Path | None:
    """The workspace that a stage's folder lies in, None where it was copied out of one."""
    depth = DEPTH.get(stage)
    parents = Path(os.path.abspath(folder)).parents
    if depth is None or len(parents) < depth:
        return None
    root = parents[depth - 1]
    return root if (root / WORKSPACE_FILE).is_file() else None


def require_files(folder: Path, manifest: Manifest, root: Path | None) -> None:
    """Raises WorkspaceError unless the files of a stage are those it wrote."""
    for name, digest in manifest.outputs.items():
        path = folder / name
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
    """Compare what a stage read with what lies in the workspace now, back to the export.

    Raises:
        WorkspaceError: an input was made anew, or the folder is another quantization's.
    """
    do = mend(folder, manifest, root)
    place = Path(os.path.abspath(folder))
    if manifest.stage == "build":
        name = manifest.options.get("name")
        if name != place.parent.name:
            raise WorkspaceError(
                f"holds the engine of the quantization {name}",
                where=str(folder),
                do=do + REMOVE,
            )
    for stage in sources(manifest.inputs):
        source = root / stage
        if stage == "quantize":
            source /= place.parent.name if manifest.stage == "build" else place.name
        if not (source / MANIFEST).is_file():
            continue
        made = read_manifest(source)
        given = {n: d for n, d in manifest.inputs.items() if n.startswith(f"{stage}/")}
        now = made.as_inputs()
        odd = sorted(n for n in given.keys() | now.keys() if given.get(n) != now.get(n))
        if odd:
            raise WorkspaceError(
                f"was made from another {NOUNS[stage]}: {odd[0]} differs",
                where=str(folder),
                do=do + (REMOVE if manifest.stage == "build" else ""),
            )
        require_made_from(source, made, root)


NOUNS = {"export": "export", "calibrate": "calibration", "quantize": "quantization"}


def sources(inputs: Iterable[str]) -> list[str]:
    """The stages whose outputs are among the names of a manifest's inputs."""
    found = {name.partition("/")[0] for name in inputs}
    return [stage for stage in SOURCES if stage in found]


def mend(folder: Path, manifest: Manifest, root: Path | None, more: str = "") -> str:
    """What makes a stage's folder anew, as an instruction."""
    if root is None:
        return f"copy the folder again, or run `arvg-trt {manifest.stage}` again"
    return f"run `{command(folder, manifest, root)}{more}` again"


def command(folder: Path, manifest: Manifest, root: Path) -> str:
    """The command line of a stage; of an export or calibration without what it was given."""
    where = str(root) if folder.is_absolute() else os.path.relpath(root)
    place, options = Path(os.path.abspath(folder)), manifest.options
    words = ["arvg-trt", manifest.stage]
    if manifest.stage == "export":
        words.append(str(options.get("model", "MODEL")))
    words.append(where)
    if manifest.stage == "build":
        words += ["--name", place.parent.name, "--backend", str(options.get("backend"))]
        words += [word for sm in options.get("targets", ()) for word in ("--target", str(sm))]
        if options.get("half", "float16") != "float16":
            words += ["--half", str(options["half"])]
    elif manifest.stage in ("quantize", "validate", "search"):
        words += ["--name", place.name]
    return shlex.join(words)


def likely_command(folder: Path) -> str:
    """The command that wrote a folder without manifest, by where it lies."""
    parts = Path(os.path.abspath(folder)).parts
    stage = {"engines": "build", "quantize": "quantize"}
    for part, depth in (("engines", 3), ("quantize", 2)):
        if len(parts) >= depth and parts[-depth] == part:
            return f"`arvg-trt {stage[part]}`"
    return "`arvg-trt export`" if parts[-1] == "export" else "the stage that wrote it"
