"""Write figures of a diagnosis as text, for its page and for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..formats import DB
from .facts import Diagnosis, OddScale

NO_ERROR, UNMEASURED = "no error", ""
NEAR_DB = 3.0  # an engine that is as much below its Q/DQ graph has twice its error


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


def samples_text(diagnosis: Diagnosis) -> str:
    """Return how many samples sites were ranked on, and their effect measured on, of how many."""
    taken, graphs = len(diagnosis.samples), len(diagnosis.graphs)
    ranked, measured = diagnosis.ranked_on, diagnosis.measured_on
    others = str(measured // graphs) if diagnosis.separate else "the same"
    noun = "samples" if diagnosis.samples_from == "held-out" else "calibration samples"
    if ranked + measured == (taken if diagnosis.separate else 2 * taken) * graphs:
        text = f"ranked on {ranked // graphs} of {diagnosis.given} {noun}, measured on {others}"
    else:  # a generator's image is several runs
        text = (
            f"ranked on {ranked} runs of {taken} of {diagnosis.given} {noun}, measured on "
            f"{measured if diagnosis.separate else 'the same'}"
        )
    if taken < diagnosis.given:
        text += f" (the first {taken} were taken: --samples takes more)"
    return text


def best_text(diagnosis: Diagnosis) -> str:
    """Return how many of the raised sites measured best; "" where fewer than two were measured."""
    measured = [row.measured_db for row in diagnosis.raised]
    known = [value for value in measured if value is not None]
    if len(known) < 2 or len(known) < len(measured):
        return ""
    best = max(known)
    count, base = known.index(best) + 1, diagnosis.held_out_db
    if base is not None and base >= best:
        return f"best measured: none of them raised ({ratio(base)})"
    if count == len(known):
        return f"best measured: all {count} ({ratio(best)})"
    return f"best measured: the first {count} ({ratio(best)}); --raise {count} writes that"


def unpredicted_text(diagnosis: Diagnosis) -> str:
    """Return why nothing is predicted of some raised sites; "" where all are."""
    if all(row.predicted_db is not None for row in diagnosis.raised):
        return ""
    if diagnosis.first_not_finite is not None:
        why = "an error is not finite"
    elif diagnosis.held_out_db is None:
        why = "the samples that are measured on have no error"
    else:
        why = "errors of the sites alone add up to more than the whole: they do not act one by one"
    return f"not predicted where there is no number: {why}"


def engine_text(diagnosis: Diagnosis) -> str:
    """Return what the figures are of, and what the engine for the CPU has on the same runs."""
    text = "figures are of the Q/DQ graph, which an engine for a GPU computes"
    found, own = diagnosis.engine_db, diagnosis.held_out_db
    if found is msgspec.UNSET:
        return text
    text += f"; ONNX Runtime's engine has {ratio(found)} on the same samples"
    if found is None or own is None or own - found <= NEAR_DB:
        return text
    return (
        f"{text}, {DB(own - found)} below it: it also rounds what convolutions return, which "
        "raising sites does not change; calibrate on more samples, or try --backend openvino"
    )


def raised_texts(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what is to be said of the raised sites together."""
    yield from filter(None, (best_text(diagnosis), unpredicted_text(diagnosis)))
