"""End every command with one line on stderr and the exit code of its kind of error."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from ...errors import INTERNAL, INTERRUPTED, ArvgError, OutOfMemory, WorkspaceError
from ...extras import BROUGHT, EXTRAS, extra_of, missing_packages, not_installed
from .console import print_json
from .groups import SectionedGroup

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a user can do about an unusable path, by the system's number.
CURES = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "name another",
    errno.ENOTDIR: "a part of the path is a file: name another",
    errno.EISDIR: "name a file",
    errno.ENOTEMPTY: "name another",
    errno.ELOOP: "its links lead in a circle: name another",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EROFS: "name a place that can be written",
    errno.EMFILE: "allow more open files: ulimit -n",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "get the right to it, as with chmod, or name another"
    ),
}
# Extras that each command needs beside the base install, to name all missing ones at once.
NEEDED = {
    **dict.fromkeys(
        ("export", "validate", "run", "sweep", "why", "diagnose"), ("export", "report")
    ),
    **dict.fromkeys(("calibrate", "quantize", "build", "inspect", "predict", "probe"), ("export",)),
    "search": ("export", "search"),
}
LONGEST_REASON = 300


class Commands(SectionedGroup):
    """End every command with one line on stderr and the exit code of its kind of error.

    With `--json` stdout has one object then too, `{"error": ...}` beside what was made before.
    Errors that nobody foresaw are left to `report_internal`. `--debug`, which every command takes,
    shows where an error was raised.
    """

    interrupted = False
    debug = False
    as_json = False

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        within = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *within):
            each.params.append(debug_option())
        super().add_command(command, name)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:
        words = sys.argv[1:] if args is None else [str(arg) for arg in args]
        # Looked for before they are parsed: what cannot be parsed is reported as asked too.
        options = words[: words.index("--")] if "--" in words else words
        self.debug, self.as_json = "--debug" in options, "--json" in options
        if not self.debug:  # the error's own line says what libraries log about a file
            logging.getLogger().addHandler(logging.NullHandler())
        return super().main(words, *rest, **named)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:  # of what stands before the command
            self.print_object(error.exit_code, error.format_message(), error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            self.print_object(error.exit_code, error.format_message(), error)
            raise
        except (Exception, KeyboardInterrupt) as error:
            # Libraries turn an interrupt into errors of their own: what follows one is one.
            if self.interrupted or isinstance(error, KeyboardInterrupt):
                kept = "finished stages are kept, run again"
                code, text = INTERRUPTED, f"interrupted ({kept})" if staged(ctx) else "interrupted"
            elif isinstance(error, (click.exceptions.Exit, click.Abort)):
                raise
            elif known := explain(error, ctx.invoked_subcommand or ""):
                code, text = known
            else:
                raise
            self.report(code, text, error)
            ctx.exit(code)

    def report_internal(self, error: Exception) -> int:
        """Print an internal error in one line; return its exit code."""
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        named = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        again = "this is a bug: please report it" if self.debug else "run with --debug"
        self.report(INTERNAL, f"internal error: {named} ({again})", error)
        return INTERNAL

    def report(self, code: int, text: str, error: BaseException) -> None:
        if self.debug:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        self.print_object(code, text, error)
        click.echo(f"error: {text}", err=True)

    def print_object(self, code: int, text: str, error: BaseException) -> None:
        """Print, with `--json`, what was made or measured before and `error` on stdout."""
        if self.as_json:
            from .figures import with_sites

            fields = {"kind": type(error).__name__, "message": text, "exit_code": code}
            fields |= {k: v for k in ("where", "do") if (v := getattr(error, k, None)) is not None}
            stages = getattr(error, "stages", None)
            made = {} if stages is None else with_sites(stages)
            print_json({**made, **getattr(error, "measured", {}), "error": fields})

    def interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True
        raise KeyboardInterrupt


# Commands that leave what their stages finished before an interruption.
STAGED = ("export", "calibrate", "quantize", "search", "build", "validate", "run")


def staged(ctx: click.Context) -> bool:
    """Return whether the command that runs keeps finished stages."""
    return ctx.invoked_subcommand in STAGED


def debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show where an error was raised."
    )


def explain(error: BaseException, command: str) -> tuple[int, str] | None:
    """Return the exit code and the line of an error that a user can act on; None for any other."""
    if isinstance(error, ArvgError):
        return error.exit_code, str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        text = f"out of memory: {reason}" if reason else "out of memory"
        return OutOfMemory.exit_code, f"{text} (ask for less at once, or free some memory)"
    if isinstance(error, OSError) and (problem := os_error_line(error)):
        return WorkspaceError.exit_code, problem
    if isinstance(error, ModuleNotFoundError) and (problem := missing_extra(error, command)):
        return ArvgError.exit_code, problem
    return None


def missing_extra(error: ModuleNotFoundError, command: str = "") -> str | None:
    """Return a line that names the packages `command` lacks, and the extras with them.

    None for a module that no extra brings.
    """
    package = str(error.name).partition(".")[0]
    needed = NEEDED.get(command, ())
    own = (name for name in needed if package in EXTRAS[name])
    extra = next(own, None) or extra_of(package)
    if extra is None:
        return None
    extras = dict.fromkeys((extra, *needed))
    missing = missing_packages(tuple(extras))
    if package not in BROUGHT and package not in missing.get(extra, ()):
        return None  # it is installed, and a module within it is not there
    return str(not_installed(missing or {extra: [package]}))


def os_error_line(error: OSError) -> str | None:
    """Return a line on a full disk or an unusable path; None for anything else."""
    where = f"{shortened(str(error.filename))}: " if error.filename else ""
    if error.errno in FULL_DISK:
        return f"{where}disk full: {error.strerror} (free some space and run again)"
    if error.errno is not None and error.strerror and error.filename:
        cure = CURES.get(error.errno)
        return f"{where}{error.strerror}" + (f" ({cure})" if cure else "")
    return None


def shortened(path: str) -> str:
    """Return a path cut to the length of a line."""
    return path if len(path) <= LONGEST_REASON else f"{path[:LONGEST_REASON]}..."
