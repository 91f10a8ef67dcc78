"""What every stage does: check whether its output is up to date, else make it in one rename."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..artifacts import (
    MANIFEST,
    Manifest,
    Workspace,
    atomic_folder,
    decode_json,
    is_up_to_date,
    sha256_file,
    write_manifest,
)
from ..errors import ArvgError, CalibrationError, WorkspaceError
from ..sites import SiteMap

Work = Callable[[Path], Mapping[str, Any]]

FP16 = "fp16"  # names the engines of the unquantized graphs


class Reporter(Protocol):
    """Where a stage says what it does: progress counts, and lines for the user."""

    def progress(self, task: str, done: int, total: int) -> None: ...

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


class SilentReporter:
    """Tells nobody: what is done is told by who asked for it."""

    def progress(self, task: str, done: int, total: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's manifest, where it lies, and whether the work was skipped as up to date."""

    folder: Path
    manifest: Manifest
    skipped: bool
    seconds: float


def package_versions(*names: str) -> dict[str, str]:
    """Versions of this tool and of the libraries that decide a stage's output."""
    found = {"arvg-trt": tool_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def tool_version() -> str:
    try:
        return version("arvg-trt")
    except PackageNotFoundError:
        return "0+source"


def run_stage(folder: Path, wanted: Manifest, work: Work) -> StageResult:
    """Do `work` into a temporary sibling of `folder` unless the same work is already there."""
    if is_up_to_date(folder, wanted):
        manifest = decode_json(folder / MANIFEST, Manifest, do="run the stage again")
        return StageResult(folder=folder, manifest=manifest, skipped=True, seconds=0.0)
    start = time.monotonic()
    with atomic_folder(folder) as temporary:
        try:
            results = work(temporary)
        except ArvgError as error:
            forget_folder(error, temporary)
            raise
        manifest = write_manifest(temporary, wanted, results)
    seconds = time.monotonic() - start
    return StageResult(folder=folder, manifest=manifest, skipped=False, seconds=seconds)


def forget_folder(error: ArvgError, temporary: Path) -> None:
    """Call files of a folder that is gone once the user reads of them by their names alone."""
    for folder in (str(temporary), str(temporary.resolve())):
        error.what = error.what.replace(f"{folder}/", "")
        if error.where is not None:
            error.where = error.where.replace(f"{folder}/", "")


def require_outputs(workspace: Workspace, *parts: str, stage: str) -> tuple[Path, Manifest]:
    """Folder and manifest of an earlier stage; its files must be the ones it wrote.

    Raises:
        WorkspaceError: the stage was not run, or a file of it is missing or was changed.
    """
    manifest = workspace.manifest(*parts, stage=stage)
    folder = workspace.folder(*parts)
    require_files(folder, manifest)
    return folder, manifest


def require_engine_files(folder: Path) -> None:
    """An engine runs on other machines than where it was built: its files must have got there.

    Raises:
        WorkspaceError: `folder` has the manifest of a build, and a file is missing or was changed.
    """
    if (folder / MANIFEST).is_file():
        manifest = decode_json(folder / MANIFEST, Manifest, do="run `arvg-trt build` again")
        if manifest.stage == "build":
            require_files(folder, manifest)


def require_files(folder: Path, manifest: Manifest) -> None:
    """Raises WorkspaceError unless the files of a stage are the ones it wrote."""
    stage = manifest.stage
    for name, digest in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            raise WorkspaceError("is missing", where=str(path), do=f"run `arvg-trt {stage}` again")
        if sha256_file(path) != digest:
            edited = "quantize --plan FILE" if name == "plan.json" else stage
            raise WorkspaceError(
                f"was changed after `arvg-trt {stage}` wrote it",
                where=str(path),
                do=f"run `arvg-trt {edited}` again",
            )


def require_same_export(exported: Manifest, calibrated: Manifest, where: str | None = None) -> None:
    """Raises CalibrationError for statistics of graphs that are not the exported ones any more."""
    odd = [
        name for name, digest in exported.outputs.items() if calibrated.inputs.get(name) != digest
    ]
    if odd:
        raise CalibrationError(
            f"the statistics are of another export: {odd[0]} differs",
            where=where,
            do="run `arvg-trt calibrate` again",
        )


def export_digest(exported: Manifest) -> str:
    """One digest of all that an export wrote."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(exported.outputs.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def load_sites(export: Path) -> SiteMap:
    return decode_json(export / "sites.json", SiteMap, do="run `arvg-trt export` again")


def tokenizer_of(exported: Manifest) -> dict[str, Any]:
    """What the export says of an image tokenizer.

    Raises:
        WorkspaceError: it is of a generator, which the stage does not take yet.
    """
    found: dict[str, Any] | None = exported.results.get("tokenizer")
    if found is None:
        raise WorkspaceError(
            f"{exported.options['model']} generates, it is no image tokenizer",
            do="calibrate, quantize and generate take it",
        )
    return found
