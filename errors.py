"""Errors a user can act on: what is wrong, where, what to do; one exit code a kind.

Anything that is not an ``ArvgError`` is a bug of ours and shows a traceback.
"""

from __future__ import annotations

from typing import ClassVar


class ArvgError(Exception):
    """A problem the user can act on, printed as one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.do})" if self.do else text


class RecipeError(ArvgError):
    """A recipe or plan that cannot be followed."""

    exit_code = 3


class ExportError(ArvgError):
    """A checkpoint or graph that cannot be read, or an export that does not match PyTorch."""

    exit_code = 4


class CalibrationError(ArvgError):
    """Calibration images or statistics that cannot be used."""

    exit_code = 5


class BuildError(ArvgError):
    """An engine that cannot be built, or a precision that the target lacks."""

    exit_code = 6


class BundleError(ArvgError):
    """An engine or artifact that does not fit this machine or this version."""

    exit_code = 7


class AccuracyError(ArvgError):
    """Validated, and below a gate."""

    exit_code = 8


class WorkspaceError(ArvgError):
    """A workspace that is busy, damaged, incomplete or made by a newer version."""

    exit_code = 9


class GenerationError(ArvgError):
    """Labels, sampling options, a cache or logits that no image can be made from."""

    exit_code = 10


class OutOfMemory(ArvgError):
    """More memory was wanted than this machine, or the device, has."""

    exit_code = 11
