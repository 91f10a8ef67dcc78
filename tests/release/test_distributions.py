"""Releases: what is refused, and that a clone of one holds versions that agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from arvg_trt.errors import ArvgError, WorkspaceError
from arvg_trt.release import distributions
from arvg_trt.release.distributions import (
    CHANGES,
    CITATION,
    MINIS,
    PYPROJECT,
    ROOT,
    build,
    changes_problem,
    copy_sources,
    git,
    main,
    other_versions,
    project_version,
    release_problems,
)

VERSION = project_version(ROOT)
SECTION = f"## {VERSION} (2026-12-01)\n\n- Something new.\n"
FILES = (PYPROJECT, CITATION, str(MINIS / PYPROJECT))


def commit(root: Path, words: str = "more") -> None:
    git(root, "add", "-A")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    git(root, *who, "commit", "-q", "-m", words)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository whose commit is a release, of the files alone that are asked for one."""
    root = tmp_path / "clone"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / CHANGES).write_text(f"# Changes\n\n{SECTION}\n## 0.1.0\n\n- Old.\n")
    git(root, "init", "-q")
    commit(root)
    git(root, "tag", f"v{VERSION}")
    return root


def test_the_versions_of_the_project_its_citation_and_the_minis_are_one() -> None:
    assert set(other_versions(ROOT).values()) == {VERSION}
    assert VERSION in (ROOT / CHANGES).read_text("utf-8")


def test_a_release_is_taken(clone: Path) -> None:
    assert list(release_problems(clone)) == []


def untagged(root: Path) -> None:
    git(root, "tag", "-d", f"v{VERSION}")


def tagged_otherwise(root: Path) -> None:
    untagged(root)
    git(root, "tag", "v9.9.9")


def tagged_before(root: Path) -> None:
    (root / "more.txt").write_text("more")
    commit(root)


def changed(root: Path) -> None:
    with (root / CITATION).open("a") as file:
        file.write("# more\n")


def new_file(root: Path) -> None:
    (root / "stray.py").touch()


def rewritten(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a change of a file that is committed and tagged anew."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
        commit(root)
        git(root, "tag", "-f", f"v{VERSION}")

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (untagged, f"the commit has no tag v{VERSION}: git tag v{VERSION}"),
        (tagged_otherwise, f"no tag v{VERSION} (it has v9.9.9)"),
        (tagged_before, f"no tag v{VERSION}"),
        (changed, f"{CITATION} not committed"),
        (new_file, "stray.py not committed"),
        (rewritten(CHANGES, f"## {VERSION}", "## 7.0.0"), f"has no section {VERSION}"),
        (rewritten(CHANGES, "(2026-12-01)", "(not released yet)"), "not released"),
        (rewritten(CHANGES, "- Something new.\n", ""), f"{CHANGES}: {VERSION} is empty"),
        (rewritten(CITATION, f"version: {VERSION}", "version: 0.0.9"), "has version 0.0.9"),
        (rewritten(str(MINIS / PYPROJECT), VERSION, "0.0.8"), "has version 0.0.8"),
    ],
)
def test_what_is_no_release_is_refused_with_the_reason(
    clone: Path, change: Callable[[Path], None], says: str
) -> None:
    change(clone)
    (problem,) = release_problems(clone)
    assert says in problem


def test_the_command_refuses_with_every_reason_and_builds_nothing(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untagged(clone)
    changed(clone)
    monkeypatch.setattr(distributions, "ROOT", clone)
    outcome = CliRunner().invoke(main, ["--output", str(tmp_path / "dist")])
    assert outcome.exit_code == WorkspaceError.exit_code
    assert outcome.stderr.startswith(f"error: {clone}: is no release: ")
    assert "not committed; the commit has no tag" in outcome.stderr
    assert outcome.stdout == "" and not (tmp_path / "dist").exists()


def test_a_section_of_a_longer_version_is_not_that_of_a_shorter() -> None:
    assert changes_problem("## 0.3.01\n\n- x\n", "0.3.0") is not None


def test_what_is_copied_is_tracked_or_new_and_neither_ignored_nor_removed(
    clone: Path, tmp_path: Path
) -> None:
    (clone / ".gitignore").write_text("/out/\n")
    (clone / "out").mkdir()
    (clone / "out" / "large.bin").touch()
    (clone / "a b\n.py").touch()
    (clone / CITATION).unlink()
    copy_sources(clone, tmp_path / "copy")
    copied = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*.*")}
    assert copied == {".gitignore", "a b\n.py", CHANGES, PYPROJECT, str(MINIS / PYPROJECT)}


def test_a_folder_that_is_no_clone_and_a_project_that_does_not_build_are_named(
    clone: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkspaceError, match="use a git clone"):
        build(tmp_path, tmp_path / "dist")
    (clone / PYPROJECT).write_text('[project]\nname = "x"\nversion = "1"\ndependencies = 3\n')
    with pytest.raises(ArvgError, match="the build failed"):
        build(clone, tmp_path / "dist")
    assert list((tmp_path / "dist").iterdir()) == []


def test_it_is_a_command_of_the_package() -> None:
    words = [sys.executable, "-m", "arvg_trt.release.distributions", "--help"]
    assert "--unreleased" in (ROOT / "Makefile").read_text("utf-8")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "--unreleased" in done.stdout
