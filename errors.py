"""Define errors a user can act on: what is wrong, where, what to do; one exit code a kind.

Anything that is not an ``ArvgError`` is a bug of ours: the command line ends with one line and
`INTERNAL`, and shows the traceback with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

USAGE = 2  # Click's code for a wrong command line
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


class ArvgError(Exception):
    """Report a problem the user can act on, printed as one line.

    ``stages`` are the results of those that had ended before, None of a command without stages;
    ``measured`` are the fields of what a gate then refused. `--json` prints both beside the error.
    """

    exit_code: ClassVar[int] = 1
    means: ClassVar[str] = "a package is not installed"

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do
        self.stages: tuple[Any, ...] | None = None
        self.measured: dict[str, Any] = {}

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.do})" if self.do else text


class RecipeError(ArvgError):
    """Report a recipe or plan that cannot be followed."""

    exit_code = 3
    means = "a recipe, a plan or an option that cannot be followed"


class ExportError(ArvgError):
    """Report a checkpoint or graph that cannot be read, or an export unlike PyTorch."""

    exit_code = 4
    means = "a checkpoint or graph that cannot be exported"


class CalibrationError(ArvgError):
    """Report calibration images or statistics that cannot be used."""

    exit_code = 5
    means = "images, feeds, samples or statistics that cannot be used"


class BuildError(ArvgError):
    """Report an engine that cannot be built, or a precision that the target lacks."""

    exit_code = 6
    means = "an engine that cannot be built, or a precision that the target lacks"


class BundleError(ArvgError):
    """Report an engine or artifact that does not fit this machine or this version."""

    exit_code = 7
    means = "a graph, engine or token file that does not run here"


class AccuracyError(ArvgError):
    """Report a validation below one of its gates."""

    exit_code = 8
    means = "a gate failed, or `compare` found a regression"


class WorkspaceError(ArvgError):
    """Report a workspace that is busy, damaged, incomplete or made by a newer version."""

    exit_code = 9
    means = "a workspace or path that is busy, missing, damaged, changed or newer; a full disk"


class GenerationError(ArvgError):
    """Report labels, sampling options, a cache or logits that give no image."""

    exit_code = 10
    means = "labels or sampling options that a model does not take"


class OutOfMemory(ArvgError):
    """Report that more memory was wanted than this machine, or the device, has."""

    exit_code = 11
    means = "out of memory"


class IntegrityError(ArvgError):
    """Report a bundle that is damaged, changed, or not signed as required; or no key."""

    exit_code = 12
    means = "a bundle that is damaged, changed or not signed as required; a bad key"


class InconclusiveError(ArvgError):
    """Report a gate or a limit that the samples decide neither way."""

    exit_code = 13
    means = "a gate with @95%, or `--max-regression`, that the samples do not decide"


# Every code that a command ends with, and what it means: docs/recipes.md has the same table.
EXIT_CODES: dict[int, str] = {
    0: "done",
    ArvgError.exit_code: ArvgError.means,
    USAGE: "a wrong command line",
    **{kind.exit_code: kind.means for kind in ArvgError.__subclasses__()},
    INTERNAL: "an internal error: a bug of ours, whose traceback `--debug` shows",
    INTERRUPTED: "interrupted",
}


def bounded(names: Sequence[str], noun: str, most: int = 3, separator: str = ", ") -> str:
    """Return a few names as they are; of many their number, and the first `most` of them."""
    if len(names) <= most:
        return separator.join(names)
    return f"{len(names)} {noun}, the first {most}: {separator.join(names[:most])}"


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names and the number of the others; one more takes no more room."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


SLIP = 0.85  # likeness, of 1, from which a name is taken for a misspelt one


def intended(name: str, known: Iterable[str]) -> str:
    """Return the known name that a slip of a letter made `name` of; else the nearest ones."""
    names = list(known)
    slip = difflib.get_close_matches(name, names, n=1, cutoff=SLIP)
    return slip[0] if slip else nearest(name, names)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the known names most like `name`, nearest first, as a message lists them."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=count, cutoff=0.0))
