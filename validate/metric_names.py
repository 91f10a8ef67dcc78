"""Say which metrics a kind of model has, for gates that are refused before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import RecipeError
from ..workspace.facts import ModelKind
from .intervals.speeds import MEMORY, OF_START, RATES
from .measure.generator_accuracy import GENERATION_NAMES
from .metrics.outputs import WORST_NAMES
from .report.gates import Gate, parse_gates
from .report.schema import ACCURACY, MEASURED, METRIC_NAMES, PARTS, Part

# What models of a kind have, the parts of theirs that are timed, and what they make in a second.
OF_KIND: dict[ModelKind, tuple[Collection[str], tuple[Part, ...], tuple[str, ...]]] = {
    "tokenizer": (ACCURACY, ("encoder", "decoder"), ("images_per_s",)),
    "custom": (WORST_NAMES, (), ("samples_per_s",)),
    "generator": (GENERATION_NAMES, ("tokens", "decoder"), ("images_per_s", "tokens_per_s")),
}
TITLES: dict[ModelKind, str] = {
    "tokenizer": "an image tokenizer",
    "custom": "graphs of your own",
    "generator": "a generator",
}


def metric_names(kind: ModelKind) -> tuple[str, ...]:
    """Return those of METRIC_NAMES that a model of a kind can have."""
    measured, parts, rates = OF_KIND[kind]
    others = {*MEASURED, *RATES} - {*measured, *rates}
    untimed = tuple(f"{part}." for part in PARTS if part not in parts)
    return tuple(
        name
        for name in METRIC_NAMES
        if name.rpartition(".")[2] not in others and not name.startswith(untimed)
    )


def parse_gates_of(kind: ModelKind, texts: Iterable[str], *, starts: bool = True) -> list[Gate]:
    """Parse the gates of a model of a kind; `starts` says whether starts will be measured.

    Raises:
        RecipeError: one is malformed, or its metric is none that such a model has or that will be
            measured.
    """
    gates = parse_gates(texts, metric_names(kind), TITLES[kind])
    unmeasured = [gate for gate in gates if gate.metric in (*OF_START, MEMORY)]
    if unmeasured and not starts:
        raise RecipeError(
            f"gate {str(unmeasured[0])!r}: no start is measured",
            do="give --starts 1 or more, and --rounds 1 or more",
        )
    return gates
