"""Define the commands that write CI files of a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import RecipeError, WorkspaceError
from ..workspace.files import atomic_write
from .support import completion
from .support.console import print_json
from .support.groups import GroupedCommand, option
from .support.options import PathArgument, json_option

if TYPE_CHECKING:
    from ..ci.job import Job, JobOptions

Command = TypeVar("Command", bound=Callable[..., Any])
PYTHONS = re.compile(r"3\.(1[0-9])")
NO_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/.]|[/.]$")  # as git refuses them


def ci_options(decorated: Command) -> Command:
    """Give a command the options that both platforms share."""
    options = (
        click.argument("recipe_name", metavar="RECIPE", shell_complete=completion.recipes),
        option(
            "-o",
            "--output",
            group="File",
            type=PathArgument(),
            help="File to write. [default: stdout]",
        ),
        option("--force", group="File", is_flag=True, help="Replace a file that is there."),
        option("--branch", group="Job", default="main", show_default=True, help="The main branch."),
        option(
            "--python", group="Job", default="3.11", show_default=True, help="Version of Python."
        ),
        option(
            "--runner",
            "runners",
            group="Job",
            multiple=True,
            help="Label (GitLab: tag) of the runner, such as one with a GPU. Repeatable.",
        ),
        option(
            "--package",
            group="Job",
            metavar="WHEEL|URL",
            help="What pip installs. [default: this version of arvg-trt from PyPI]",
        ),
        option(
            "--bundle",
            group="Job",
            is_flag=True,
            help="On the main branch also sign a bundle of the engines, with a key from a secret.",
        ),
        json_option,
    )
    for decorate in reversed(options):
        decorated = decorate(decorated)
    return decorated


@click.group()
def ci() -> None:
    """Write a CI job that runs a recipe and comments on changes.

    Pull requests are compared with a baseline.

    \b
    arvg-trt ci github cosmos-mini-int8 -o .github/workflows/arvg-trt.yml
    arvg-trt ci gitlab cosmos-mini-int8 -o .gitlab-ci.yml
    """


@ci.command(cls=GroupedCommand)
@ci_options
def github(recipe_name: str, output: Path | None, force: bool, as_json: bool, **job: Any) -> None:
    """Write a workflow of GitHub Actions for RECIPE.

    RECIPE is a preset or a file of the repository. Run this in the root of the repository. The
    workflow needs no other action than GitHub's own.

    \b
    Example: arvg-trt ci github cosmos-mini-int8 -o .github/workflows/arvg-trt.yml
             arvg-trt ci github recipes/mine.toml --branch develop --bundle
    """
    from ..ci.github import github_workflow

    described, options = describe(recipe_name, **job)
    text = github_workflow(described, options, command_line("github", described, options))
    emit(text, output, force, as_json, described)


@ci.command(cls=GroupedCommand)
@ci_options
def gitlab(recipe_name: str, output: Path | None, force: bool, as_json: bool, **job: Any) -> None:
    """Write a job of GitLab CI for RECIPE.

    RECIPE is a preset or a file of the repository. Run this in the root of the repository. The file
    is a `.gitlab-ci.yml`, or included by one.

    \b
    Example: arvg-trt ci gitlab cosmos-mini-int8 -o .gitlab-ci.yml
             arvg-trt ci gitlab recipes/mine.toml -o ci/arvg-trt.yml --runner gpu
    """
    from ..ci.gitlab import gitlab_job

    described, options = describe(recipe_name, **job)
    include = None if output is None else output.as_posix()
    line = command_line("gitlab", described, options)
    emit(gitlab_job(described, options, line, include), output, force, as_json, described)


def describe(
    recipe_name: str,
    *,
    branch: str,
    python: str,
    runners: Sequence[str],
    package: str | None,
    bundle: bool,
) -> tuple[Job, JobOptions]:
    """Return what the file says of a recipe, and what was chosen, checked."""
    from ..ci.job import JobOptions, describe_job
    from ..ci.text import require_printable

    require_printable(branch, "the branch")
    if NO_BRANCH.search(branch) or not branch:
        raise RecipeError(f"{branch!r} is no name of a branch", where="--branch")
    if not PYTHONS.fullmatch(python):
        raise RecipeError(f"{python!r} is no version of Python", where="--python", do="e.g. 3.11")
    for text, flag in [(package, "--package"), *((label, "--runner") for label in runners)]:
        if text is not None and not require_printable(text, flag).strip():
            raise RecipeError("is empty: give a value, or leave it out", where=flag)
    options = JobOptions(
        branch=branch, python=python, runners=tuple(runners), bundle=bundle, package=package
    )
    return describe_job(recipe_name, options), options


def command_line(platform: str, job: Job, options: JobOptions) -> str:
    """Return the command that writes the same file again."""
    words = ["arvg-trt", "ci", platform, job.recipe]
    words += [] if options.branch == "main" else ["--branch", options.branch]
    words += [] if options.python == "3.11" else ["--python", options.python]
    words += [word for label in options.runners for word in ("--runner", label)]
    words += [] if options.package is None else ["--package", options.package]
    return shlex.join([*words, *(["--bundle"] if options.bundle else [])])


def emit(text: str, output: Path | None, force: bool, as_json: bool, job: Job) -> None:
    """Print a file's text, or write it and say where, with what is to be known of it."""
    if output is None:
        print_json({"text": text, "notes": job.notes}) if as_json else click.echo(text, nl=False)
        return
    if output.exists() and not force:
        raise WorkspaceError("is there already", where=str(output), do="--force replaces it")
    atomic_write(output, text.encode())
    if as_json:
        print_json({"written": output, "baseline": job.baseline, "notes": job.notes})
        return
    click.echo(str(output))
    for note in job.notes:
        click.echo(f"note: {note}", err=True)
