"""Write figures of a diagnosis as text, for its page and for a terminal."""

from __future__ import annotations

import msgspec

from ..formats import DB
from .facts import Diagnosis, OddScale

NO_ERROR, UNMEASURED = "no error", ""


def ratio(value: float | msgspec.UnsetType | None, *, finite: bool = True) -> str:
    """Return a ratio in dB as text."""
    if value is msgspec.UNSET:
        return UNMEASURED
    if value is None:
        return NO_ERROR if finite else "NaN"
    return DB(value)


def microseconds(value: float | msgspec.UnsetType) -> str:
    """Return what an image takes longer as text."""
    return UNMEASURED if value is msgspec.UNSET else f"{value:+.3g} µs"


def scale_text(odd: OddScale) -> str:
    """Return what another factor gains."""
    gain = "it is finite" if odd.gain_db is None else f"{odd.gain_db:.1f} dB less error"
    return f"{odd.factor:.3g} times it, {gain} at the site's output"


def graph_ratios(diagnosis: Diagnosis) -> str:
    """Return what each graph has, on the runs that sites are ranked on."""
    return ", ".join(f"{graph} {ratio(value)}" for graph, value in diagnosis.graphs.items())
