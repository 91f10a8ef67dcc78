"""Hold an evaluation to gates such as ``fid<=5.2`` or ``23<=fid<=23.9``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ...errors import AccuracyError, CalibrationError, RecipeError
from ..quality.open import FEATURES, LOGITS, POOL, SPATIAL
from ..report.gates import Gate, GateResult, parse_gates
from ..report.gates import evaluate as check
from .distribution import Distribution

# The figures that can be held to something, the output of the network that each is of, and whether
# it compares with a reference.
NEEDS: Mapping[str, tuple[str, bool]] = {
    "fid": (POOL, True),
    "sfid": (SPATIAL, True),
    "inception_score": (LOGITS, False),
    "inception_score_shuffled": (LOGITS, False),
    "precision": (POOL, True),
    "recall": (POOL, True),
    "kid": (POOL, True),
}


def evaluation_gates(
    texts: Iterable[str], features: str | None, reference: str | None
) -> list[Gate]:
    """Parse the gates of an evaluation, before an image is made.

    Raises:
        RecipeError: one is malformed, asks for an interval, or its figure needs a network or a
            reference that is not given.
    """
    gates = parse_gates(texts, tuple(NEEDS), "an evaluation")
    for gate in gates:
        if gate.level is not None:
            raise RecipeError(
                f"gate {str(gate)!r}: {gate.metric} has no interval, for it is one figure of all "
                "images",
                do=f"write {str(gate).partition('@')[0]}, or a band such as 23<=fid<=23.9",
            )
        if features is None:
            what = f"gate {str(gate)!r}: nothing is measured without a network"
            raise RecipeError(what, where="--features", do=FEATURES)
        if NEEDS[gate.metric][1] and reference is None:
            raise RecipeError(
                f"gate {str(gate)!r}: {gate.metric} compares with a reference",
                where="--reference",
                do="name a .npz of the ADM evaluator, or a folder of images",
            )
    return gates


def require_outputs_of(gates: Iterable[Gate], outputs: Collection[str], network: str) -> None:
    """Raise CalibrationError if a gate's figure is of an output that the network does not have."""
    for gate in gates:
        needed = NEEDS[gate.metric][0]
        if needed not in outputs:
            raise CalibrationError(
                f"has no output {needed}, which {gate.metric} needs",
                where=f"--features {network}",
                do=f"name a network that has it, or leave the gate {gate} out",
            )


def gate_results(gates: Iterable[Gate], found: Distribution | None) -> tuple[GateResult, ...]:
    """Check each gate; a figure that was not measured fails its gate."""
    values: dict[str, float | None] = {}
    if found is not None:
        values = {name: getattr(found, name) for name in NEEDS if name != "kid"}
        values["kid"] = None if found.kid is None else found.kid.mean
    return tuple(check(gates, values))


def gate_error(gates: Iterable[GateResult], where: str) -> AccuracyError | None:
    """Return the error that names the gates that failed; None if none did."""
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return None
    return AccuracyError(
        "; ".join(f"gate {gate.expression} failed ({gate.reason})" for gate in failed),
        where=where,
        do="change what was built, or the gate",
    )
