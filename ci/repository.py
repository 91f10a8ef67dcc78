"""Ask git about the repository that this folder is in; without git nothing is known."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError

ATTRIBUTES = Path(".gitattributes")


def git(*words: str, given: str = "") -> str | None:
    """Return what a command of git prints here, None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", *words], input=given, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def require_root() -> None:
    """Raise RecipeError in a folder below a repository's root: jobs run in the root."""
    found = git("rev-parse", "--show-toplevel")
    root = None if found is None else Path(found.rstrip("\n"))
    if root is not None and root.is_dir() and not os.path.samefile(root, Path.cwd()):
        raise RecipeError(
            "jobs run in the root of the repository, and this folder is below it",
            where=str(Path.cwd()),
            do=f"run this in {root}, with paths from there",
        )


def require_not_ignored(paths: Sequence[str]) -> None:
    """Raise RecipeError for the first path that git ignores: a job would not find it."""
    found = git("check-ignore", "-z", "--stdin", given="".join(f"{path}\0" for path in paths))
    ignored = (found or "").split("\0")[0]
    if ignored:
        raise RecipeError(
            "is ignored by git, so a job would not find it",
            where=ignored,
            do="keep it in the repository (large files by Git LFS), or name a runner that has it "
            "at an absolute path: --runner LABEL",
        )


def uses_large_files() -> bool:
    """Return whether this repository keeps files in Git LFS."""
    return ATTRIBUTES.is_file() and "filter=lfs" in ATTRIBUTES.read_text(errors="replace")
