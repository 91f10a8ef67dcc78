"""What the command line adds to Click: errors in one line with their exit codes, option types."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any, ClassVar

import click

from .errors import ArvgError, WorkspaceError
from .recipe import MAX_MEMORY

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
USERS_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
INTERRUPTED = 130
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes"), "export"),
    **dict.fromkeys(("jinja2", "skimage", "matplotlib"), "report"),
    "scipy": "search",
    "ray": "distributed",
}

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
workspace_argument = click.argument("workspace", type=click.Path(path_type=Path))


class Exponent(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A number, or one of the words "search" and "gps"."""

    name = "number|search|gps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value in ("search", "gps"):
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f'{value!r} is neither a number nor "search" nor "gps"', param, ctx)


class Bytes(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A number of bytes, as 800000000, 800MB or 2GiB."""

    name = "bytes"
    units: ClassVar[dict[str, int]] = {
        **{"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
        **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?i?B|)", str(value))
        size = int(float(found[1]) * self.units.get(found[2], 0)) if found else 0
        if size < 1:
            self.fail(f"{value!r} is no number of bytes such as 800MB or 2GiB", param, ctx)
        return size


memory_option = click.option(
    "--max-memory", type=Bytes(), default=MAX_MEMORY, help="Of second moments. [default: 2GiB]"
)


class Commands(click.Group):
    """Prints what a user can act on as one line and exits with its code; bugs show a traceback."""

    interrupted = False

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # Libraries turn an interrupt into errors of their own: what follows one is one.
            if self.interrupted or isinstance(error, KeyboardInterrupt):
                code, text = INTERRUPTED, "interrupted (finished stages are kept, run again)"
            elif isinstance(error, ArvgError):
                code, text = error.exit_code, str(error)
            elif isinstance(error, OSError) and (problem := describe_os_error(error)):
                code, text = WorkspaceError.exit_code, problem
            elif isinstance(error, ModuleNotFoundError) and (problem := missing_extra(error)):
                code, text = ArvgError.exit_code, problem
            else:
                raise
            click.echo(f"error: {text}", err=True)
            ctx.exit(code)

    def interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True
        raise KeyboardInterrupt


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Which extra brings a package that only some stages need; None for any other module."""
    package = str(error.name).partition(".")[0]
    extra = EXTRAS.get(package)
    return f"{package} is not installed (pip install 'arvg-trt[{extra}]')" if extra else None


def describe_os_error(error: OSError) -> str | None:
    """A full disk, or a path that cannot be used; None for anything else."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL_DISK:
        return f"{where}disk full: {error.strerror} (free some space and run again)"
    if error.errno in USERS_PATHS and error.filename:
        return f"{where}{error.strerror}"
    return None
