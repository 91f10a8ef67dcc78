"""Run a stage: check whether its output is up to date, else make it in one rename."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import msgspec

from ..errors import ArvgError
from .files import atomic_folder, decode_json, recover_folder
from .manifest import MANIFEST, Manifest, is_up_to_date, write_manifest
from .peak_memory import resident_peak
from .times import record_time
from .verify import verify
from .workspace import Workspace

# Distributions that bring a library under another name; one of them is installed.
PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}

STAGE_END, WORKING = ": ", "working"  # behind a stage in front of its tasks; the first of them

# Does the work of a stage in a folder; returns results for the manifest.
Work = Callable[[Path], msgspec.Struct]


class Reporter(Protocol):
    """Receive what a stage reports: progress counts, and lines for the user.

    A total of 0 says that a task runs and counts nothing.
    """

    def progress(self, task: str, done: int, total: int) -> None: ...

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


class SilentReporter:
    """Report nothing, for callers that print the result themselves."""

    def progress(self, task: str, done: int, total: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class StageReporter:
    """Report the progress of a stage under its name; lines go on as they are."""

    reporter: Reporter
    stage: str

    def progress(self, task: str, done: int, total: int) -> None:
        self.reporter.progress(f"{self.stage}{STAGE_END}{task}", done, total)

    def say(self, line: str) -> None:
        self.reporter.say(line)

    def warn(self, line: str) -> None:
        self.reporter.warn(line)


def in_stage(reporter: Reporter, stage: str) -> Reporter:
    """Return a reporter of a stage, also within another, and say that it works."""
    inner = reporter.reporter if isinstance(reporter, StageReporter) else reporter
    named = StageReporter(inner, stage)
    named.progress(WORKING, 0, 0)  # else the last task of the stage before seems to go on
    return named


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a stage's manifest, its folder, and whether the work was skipped as up to date.

    `memory` is the most of this process that was resident, in bytes, where the system tells.
    """

    folder: Path
    manifest: Manifest
    skipped: bool
    seconds: float
    memory: int | None = None


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of this tool and of the libraries that decide a stage's output."""
    versions = {"arvg-trt": tool_version()}
    for name in names:
        for package in PACKAGES.get(name, (name,)):
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(package)
    return versions


def tool_version() -> str:
    try:
        return version("arvg-trt")
    except PackageNotFoundError:
        return "0+source"


@dataclass(frozen=True, slots=True)
class PreparedStage:
    """Hold what a stage would do: its folder, the manifest that it would have, and its work."""

    folder: Path
    wanted: Manifest
    work: Work

    def run(self) -> StageResult:
        """Do the work, unless the folder is up to date."""
        return run_stage(self.folder, self.wanted, self.work)


def run_stage(folder: Path, wanted: Manifest, work: Work) -> StageResult:
    """Do `work` into a temporary sibling of `folder` unless the same work is already there."""
    recover_folder(folder)
    if is_up_to_date(folder, wanted):
        manifest = decode_json(folder / MANIFEST, Manifest, do="run the stage again")
        return StageResult(folder=folder, manifest=manifest, skipped=True, seconds=0.0)
    start = time.monotonic()
    with resident_peak() as peak, atomic_folder(folder) as temporary:
        try:
            results = work(temporary)
        except ArvgError as error:
            forget_folder(error, temporary)
            raise
        manifest = write_manifest(temporary, wanted, msgspec.to_builtins(results))
    seconds = time.monotonic() - start
    record_time(folder, seconds, peak.bytes)
    return StageResult(
        folder=folder, manifest=manifest, skipped=False, seconds=seconds, memory=peak.bytes
    )


def forget_folder(error: ArvgError, temporary: Path) -> None:
    """Remove the path of a temporary folder from an error; it is gone when the user reads it."""
    for folder in (str(temporary), str(temporary.resolve())):
        error.what = error.what.replace(f"{folder}/", "")
        if error.where is not None:
            error.where = error.where.replace(f"{folder}/", "")


def require_outputs(workspace: Workspace, *parts: str, stage: str) -> tuple[Path, Manifest]:
    """Return folder and manifest of an earlier stage, verified.

    Raises:
        WorkspaceError: the stage was not run, or its folder is not what it made from what lies
            in the workspace now.
    """
    workspace.manifest(*parts, stage=stage)
    folder = workspace.folder(*parts)
    return folder, verify(folder)
