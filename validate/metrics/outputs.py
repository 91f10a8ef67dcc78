"""Measure how close outputs of quantized graphs come to FP32's, on the same feeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ...numerics.noise import SignalAndNoise
from .image import decibels, none_if_infinite
from .parts import ChannelSums, OutputPart
from .sums import SampleSums, energies

Arrays = Mapping[str, NDArray[Any]]


class Graphs(Protocol):
    """Run graphs one after the other: feeds by input name -> outputs by `GRAPH/OUTPUT`."""

    def run(self, arrays: Arrays) -> Arrays: ...


class OutputAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Compare one output of a candidate with the FP32 output, over all samples.

    For floats: ``sqnr_db`` in dB (None for infinity: no error at all), ``max_error`` the largest
    absolute difference, ``cosine`` of all values as one vector (None if one of them is all zeros).
    For integers and booleans: the share in [0, 1] that is ``equal``. Fields of the other kind are
    None. ``sums`` has, by sample, what these are made of; a report of version 1 has none. ``part``
    is the worst part of an output of a user's own whose channels have unlike scales, else None;
    unset where it was not looked for.
    """

    output: str
    sqnr_db: float | None = None
    max_error: float | None = None
    cosine: float | None = None
    equal: float | None = None
    sums: dict[str, tuple[float, ...]] = {}
    part: OutputPart | msgspec.UnsetType | None = msgspec.UNSET


class OutputAccumulator:
    """Add up errors of one output over samples, in float64; by channel too if `parts` are asked."""

    def __init__(self, *, parts: bool = False) -> None:
        self.channels = ChannelSums() if parts else None
        self.sqnr = SignalAndNoise()
        self.own = 0.0
        self.product = 0.0
        self.largest = 0.0
        self.equal = 0
        self.count = 0
        self.finite = 0
        self.floats = False
        self.sums = SampleSums()

    def add(self, reference: NDArray[Any], value: NDArray[Any], sample: str = "") -> None:
        """Add an output of FP32 and of the candidate, of one shape; `sample` is what was fed."""
        self.count += reference.size
        self.floats = bool(np.issubdtype(reference.dtype, np.floating))
        if not self.floats:
            equal = int(np.count_nonzero(reference == value))
            self.equal += equal
            self.sums.add(sample, equal=equal, values=reference.size)
            return
        finite = np.isfinite(reference)  # `require_like` saw that the rest is equal
        exact, actual = reference[finite].astype(np.float64), value[finite].astype(np.float64)
        self.finite += int(np.count_nonzero(finite))
        self.sqnr.add(exact, actual)
        own, product = float(np.sum(np.square(actual))), float(np.sum(exact * actual))
        self.own += own
        self.product += product
        self.sums.add(sample, **energies(exact, actual), own=own, product=product)
        if self.channels is not None:
            self.channels.add(reference.astype(np.float64), value.astype(np.float64), finite)
        # Python's max would lose a NaN.
        self.largest = float(np.maximum(self.largest, np.abs(exact - actual).max(initial=0.0)))

    def result(self, output: str) -> OutputAccuracy:
        if not self.floats:
            share = self.equal / max(1, self.count)
            return OutputAccuracy(output=output, equal=share, sums=self.sums.columns())
        if self.count and not self.finite:
            raise AccuracyError(
                f"FP32 gave no finite value of {output}, so that nothing can be compared",
                do="validate on other samples, or leave the output out of the graph",
            )
        whole = self.sqnr.decibels()
        norms = math.sqrt(self.sqnr.signal * self.own)
        return OutputAccuracy(
            output=output,
            sqnr_db=none_if_infinite(whole),
            max_error=self.largest,
            cosine=float(np.minimum(1.0, self.product / norms)) if norms else None,
            sums=self.sums.columns(),
            part=self.channels.worst() if self.channels is not None else msgspec.UNSET,
        )


def measure_outputs(
    samples: Iterable[tuple[str, Arrays]],
    reference: Graphs,
    candidates: Mapping[str, Graphs],
    progress: Callable[[int], None],
) -> dict[str, tuple[OutputAccuracy, ...]]:
    """Run every sample through FP32 and each candidate, one sample in memory at a time.

    Candidates run end to end: a later graph is fed what the candidate's own earlier graph made.
    Where FP32 gives NaN or infinity, as masks do, a candidate has to give the same; the rest is
    compared.

    Raises:
        AccuracyError: a non-finite value where FP32 has none or another, another shape than FP32's
            (sample and output are named), an FP32 output of zeros that a candidate differs from,
            or no samples.
    """
    accumulators: dict[str, dict[str, OutputAccumulator]] = {name: {} for name in candidates}
    done = 0
    for done, (sample, feeds) in enumerate(samples, start=1):
        expected = reference.run(feeds)
        for name, graphs in candidates.items():
            found = graphs.run(feeds)
            for output, value in expected.items():
                require_like(name, sample, output, value, found[output])
                accumulator = accumulators[name].setdefault(output, OutputAccumulator(parts=True))
                accumulator.add(value, found[output], sample)
        progress(done)
    if not done:
        raise AccuracyError("there are no samples to validate with", do="give --feeds FILE.npz")
    return {
        name: tuple(accumulator.result(output) for output, accumulator in outputs.items())
        for name, outputs in accumulators.items()
    }


def require_like(
    candidate: str, sample: str, output: str, expected: NDArray[Any], actual: NDArray[Any]
) -> None:
    what = None
    if actual.shape != expected.shape:
        what = f"shape {list(actual.shape)} where FP32 gave {list(expected.shape)}"
    elif np.issubdtype(actual.dtype, np.floating):
        odd = ~(np.isfinite(actual) & np.isfinite(expected))
        same = np.equal(actual, expected) | (np.isnan(actual) & np.isnan(expected))
        wrong = int(np.count_nonzero(odd & ~same))
        if wrong:
            what = f"{wrong} non-finite of {actual.size} values"
            if not np.isfinite(expected).all():
                what += ", or finite where FP32 has none"
    if what is not None:
        raise AccuracyError(
            f"{output} of {candidate} gave {what}",
            where=sample,
            do="look for overflow; keep the suspect sites in high precision",
        )


def worst(outputs: Iterable[OutputAccuracy]) -> dict[str, float | None]:
    """Return the worst output's value of each metric, by the names that gates read."""
    rows = list(outputs)
    floats = [o for o in rows if o.max_error is not None]
    whole = [decibels(o.sqnr_db) for o in floats]
    looked = [(o.part, o.sqnr_db) for o in floats]
    parts = [decibels(p.sqnr_db if p else w) for p, w in looked if p is not msgspec.UNSET]
    cosines = [o.cosine for o in floats if o.cosine is not None]
    errors = [o.max_error for o in floats if o.max_error is not None]
    equals = [o.equal for o in rows if o.equal is not None]
    return {
        "output_sqnr_db": min(whole, default=None),
        "output_part_sqnr_db": min(parts, default=None),
        "output_cosine": min(cosines, default=None),
        "output_max_error": max(errors, default=None),
        "output_equal": min(equals, default=None),
    }


WORST_NAMES = tuple(worst(()))
