"""Define what a second opinion says: whether another way of running graphs gives what ours gives.

Two things are compared. A `SecondOpinion` has the outputs of one graph, from two ways of running
it on the same feeds. A `FigureOpinion` has the figure that a validation is about, how far a Q/DQ
graph is from FP32, once from our sessions and once from the others.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from ..metrics.image import decibels

# Polygraphy's own runner of ONNX Runtime, or PyTorch with the checkpoint's own module.
Way = Literal["polygraphy", "torch"]
# Two sessions of the same kernels gave equal bits; threads that add up in another order may differ
# by less than this. Relative to the value, and added to it.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
# Of PyTorch, largest error over the RMS of the output: the limit of an export's own comparison.
TORCH_ERROR = 5e-4
# Where two codes are equally near, rounding decides: so many tokens may be others.
TORCH_TOKENS = 0.995
# Between the same figure of two ways of running, in dB.
FIGURE_DB = 0.05


class SecondOpinion(msgspec.Struct, frozen=True, kw_only=True):
    """Compare a graph's outputs in our session with those of another way, fed alike.

    ``max_error`` is the largest absolute difference of any output of ``samples`` runs, of outputs
    of floats if there are some, None where it is not finite; ``relative_error`` the same over the
    RMS of its output. ``equal``
    is the least share of equal values of an output of integers, None without one. ``limit`` says
    in words what agrees. In reports before this version ``by`` was Polygraphy, of one sample.
    """

    candidate: str
    graph: str
    outputs: int
    max_error: float | None
    agrees: bool
    by: Way = "polygraphy"
    samples: int = 1
    relative_error: float | None = None
    equal: float | None = None
    limit: str = ""


class FigureOpinion(msgspec.Struct, frozen=True, kw_only=True):
    """Compare the SQNR in dB of a Q/DQ graph's output against FP32's, of ours and another way.

    None is no error at all. They agree if they are ``limit_db`` or less apart.
    """

    graph: str
    output: str
    by: Way
    ours_db: float | None
    theirs_db: float | None
    samples: int
    limit_db: float = FIGURE_DB

    @property
    def apart_db(self) -> float:
        """Return how far both are apart; infinite where one alone is without error."""
        ours, theirs = decibels(self.ours_db), decibels(self.theirs_db)
        return 0.0 if ours == theirs else abs(ours - theirs)

    @property
    def agrees(self) -> bool:
        """Return whether both say the same of the quantization."""
        return math.isfinite(self.apart_db) and self.apart_db <= self.limit_db


class Opinions(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that another way of running said, and what was not run here with the reason."""

    graphs: tuple[SecondOpinion, ...] = ()
    figures: tuple[FigureOpinion, ...] = ()
    not_run: tuple[str, ...] = ()
