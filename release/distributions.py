"""Build what a release publishes: the wheel and the sdist of arvg-trt, the wheel of the minis.

    python -m arvg_trt.release.distributions [--output dist] [--unreleased]

It refuses a tree that is not clean, a commit without the tag of its version, and a version that
CHANGELOG.md does not describe. The version stands in pyproject.toml and not in a tag alone:
manifests hold it, and it has to be the same in a shallow clone. `--unreleased` builds any tree.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import deflate
import msgspec

from ..errors import ArvgError, WorkspaceError

ROOT = Path(__file__).resolve().parent.parent
MINIS = Path("release/minis")
PYPROJECT, CHANGES, CITATION = "pyproject.toml", "CHANGELOG.md", "CITATION.cff"
MOST_WHEEL_BYTES = 12_000_000
BEST = 12  # libdeflate's levels end there
HEADING = re.compile(r"^## (?P<version>\S+)(?P<rest>.*)$", re.MULTILINE)


@click.command()
@click.option("--output", default="dist", show_default=True, type=click.Path(path_type=Path))
@click.option("--unreleased", is_flag=True, help="Build any tree, as it lies here.")
def main(output: Path, unreleased: bool) -> None:
    """Build both wheels and the sdist into a folder."""
    try:
        problems = () if unreleased else tuple(release_problems(ROOT))
        if problems:
            raise WorkspaceError(f"is no release: {'; '.join(problems)}", where=str(ROOT))
        for path in build(ROOT, output):
            click.echo(f"{path.stat().st_size / 1e6:6.2f} MB  {path}")
    except ArvgError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def project_version(root: Path) -> str:
    """Return the version of a project's pyproject.toml."""
    settings = msgspec.toml.decode((root / PYPROJECT).read_bytes())
    return str(settings["project"]["version"])


def release_problems(root: Path) -> Iterator[str]:
    """Say what keeps a clone from being a release, each with what to do."""
    version = project_version(root)
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        yield f"{names}{more} not committed"
    tags = git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        found = f" (it has {', '.join(tags)})" if tags else ""
        yield f"the commit has no tag v{version}{found}: git tag v{version}"
    yield from filter(None, (changes_problem((root / CHANGES).read_text("utf-8"), version),))
    for name, found in other_versions(root).items():
        if found != version:
            yield f"{name} has version {found}, {PYPROJECT} {version}"


def changes_problem(text: str, version: str) -> str | None:
    """Return what is wrong with the section of a version in CHANGELOG.md; None if it is right."""
    headings = list(HEADING.finditer(text))
    for k, heading in enumerate(headings):
        if heading["version"] == version:
            end = headings[k + 1].start() if k + 1 < len(headings) else len(text)
            if "not released" in heading["rest"]:
                return f"{CHANGES} calls {version} not released: write the day in its place"
            return None if text[heading.end() : end].strip() else f"{CHANGES}: {version} is empty"
    return f"{CHANGES} has no section {version}"


def other_versions(root: Path) -> dict[str, str]:
    """Return the versions that have to be the project's, by the file that has them."""
    cited = re.search(r"^version: *(\S+)$", (root / CITATION).read_text("utf-8"), re.MULTILINE)
    return {
        CITATION: cited[1] if cited else "none",
        str(MINIS / PYPROJECT): project_version(root / MINIS),
    }


def build(root: Path, output: Path) -> list[Path]:
    """Build from a copy of the files that git knows or would take; return what was made.

    The wheel of arvg-trt is built from its sdist, which proves that one complete. The day of the
    commit is that of all files within, so that one commit gives the same bytes.

    Raises:
        WorkspaceError: the wheel is larger than it may be.
        ArvgError: the build failed.
    """
    epoch = git(root, "log", "-1", "--format=%ct").strip()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sources, made = Path(folder) / "sources", Path(folder) / "made"
        copy_sources(root, sources)
        environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
        run_build(sources, made, environment)
        run_build(sources / MINIS, made, environment, "--wheel")
        wheel = made / f"arvg_trt-{project_version(root)}-py3-none-any.whl"
        compress_again(wheel)
        if wheel.stat().st_size > MOST_WHEEL_BYTES:
            raise WorkspaceError(
                f"has {wheel.stat().st_size / 1e6:.2f} MB, more than {MOST_WHEEL_BYTES / 1e6:g} MB",
                where=wheel.name,
                do=f"move a model to {MINIS}",
            )
        return [Path(shutil.copy(path, output / path.name)) for path in sorted(made.iterdir())]


class BestCompressor:
    """Compress a file as a whole by libdeflate, in the place of what zipfile gets from zlib."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def compress(self, data: bytes) -> bytes:
        """Keep the data until all of it is there."""
        self.parts.append(data)
        return b""

    def flush(self) -> bytes:
        """Return all data, compressed."""
        return bytes(deflate.deflate_compress(b"".join(self.parts), BEST))


def compress_again(wheel: Path) -> None:
    """Compress the files of a wheel once more: by libdeflate it takes 115 kB less than by zlib."""

    def compressor(kind: int, level: int | None = None) -> Any:
        return None if kind == zipfile.ZIP_STORED else BestCompressor()

    smaller = wheel.with_suffix(".tmp")
    # zipfile has no public way to say a compressor; without this function it fails, and a test too.
    with (
        mock.patch.object(zipfile, "_get_compressor", compressor),
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry, source.read(entry))
    smaller.replace(wheel)


def copy_sources(root: Path, folder: Path) -> None:
    """Copy the files of a clone that are tracked, or new and not ignored."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # one that was removed and not yet committed is listed too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)


def run_build(project: Path, output: Path, environment: dict[str, str], *options: str) -> None:
    """Build a project by its own back end, with the setuptools that is installed here."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), *options]
    done = subprocess.run(
        [*words, "."], cwd=project, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ArvgError(
            f"the build failed: {''.join(last)}", where=str(project), do="pip install '.[dev]'"
        )


def git(root: Path, *words: str) -> str:
    """Return what a git command prints.

    Raises:
        WorkspaceError: it failed, as it does outside of a clone.
    """
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    if done.returncode:
        raise WorkspaceError(
            f"git {words[0]} failed: {done.stderr.strip()}", where=str(root), do="use a git clone"
        )
    return done.stdout


if __name__ == "__main__":
    main()
