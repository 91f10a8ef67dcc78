"""Choose the rows a generator is calibrated on: distribution-guided calibration (PTQ4ARVG).

Under guidance half of the rows have no condition and look alike. The distance of a row is
Mahalanobis': of what the last block gives for the first token, to the mean of the row's own half
(conditional or null) under that half's covariance. Far rows tell more about ranges than near ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..graph.builder import add_node, constant
from ..graph.sites import Site
from .calibration_run import CalibrationRun
from .observers.reduce import values_by_name
from .observers.run import Outputs

Floats = NDArray[np.float64]
Covariance = Literal["pseudo-inverse", "shrunk"]
Selection = Literal["ratio", "distance"]
FEATURES = "first-token"
# Conditional and null rows whose mean distances differ by less are selected alike, as published.
AGREE = 1e-3
# Rows count as equal below this distance, relative to the features' norm: a float32 rounding error.
ROUNDING = 1e-5
LAST_OF_BLOCK = "fc2"  # in all families


@dataclass(frozen=True, slots=True)
class DgcSelection:
    """Say which conditional and null rows to keep, in order.

    `distances` are those of all rows, conditional and null; `agree` where they told nothing, and
    the halves are kept alike.
    """

    conditional: NDArray[np.int64]
    null: NDArray[np.int64]
    distances: tuple[Floats, Floats]
    covariance: Covariance
    agree: bool

    @property
    def share(self) -> float:
        """Return the share of kept rows that are conditional."""
        return len(self.conditional) / (len(self.conditional) + len(self.null))


def choose_rows(conditional: Floats, null: Floats, keep: int, selection: Selection) -> DgcSelection:
    """Keep `keep` of the rows with these features, [N, C] of each half.

    The share of conditional rows among the `keep` most distant decides; kept are the first of each
    half in that share ("ratio", as published), or the most distant themselves ("distance").

    Raises:
        CalibrationError: fewer than two rows a half, which have no covariance, or than `keep`.
    """
    count = min(len(conditional), len(null))
    if count < 2:
        raise CalibrationError(
            f"DGC has {len(conditional)} conditional and {len(null)} null rows, too few for a "
            "covariance",
            do="give it more candidates",
        )
    if keep > len(conditional) + len(null):
        raise CalibrationError(
            f"{keep} rows cannot be chosen of {len(conditional) + len(null)}",
            do="give DGC more candidates",
        )
    (of_conditional, kind), (of_null, other) = distances(conditional), distances(null)
    agree = abs(float(of_conditional.mean() - of_null.mean())) <= AGREE
    order = np.argsort(-np.concatenate([of_conditional, of_null]), kind="stable")
    wanted = int(np.sum(order[:keep] < len(conditional)))
    if agree:
        wanted = min(max((keep + 1) // 2, keep - len(null)), len(conditional))
    selected = []
    for each, size in ((of_conditional, wanted), (of_null, keep - wanted)):
        first = np.arange(len(each)) if selection == "ratio" else np.argsort(-each, kind="stable")
        selected.append(np.sort(first[:size]))
    covariance = "shrunk" if "shrunk" in (kind, other) else kind
    return DgcSelection(selected[0], selected[1], (of_conditional, of_null), covariance, agree)


def distances(features: Floats) -> tuple[Floats, Covariance]:
    """Return Mahalanobis distances [N] of rows [N, C] to their mean, and whose covariance it was.

    sqrt((x - m)^T S^+ (x - m)) as published, S with 1 / (N - 1), where distinct rows outnumber the
    dimensions that they span by more than one. With fewer, as 128 samples of 1024 features, every
    row has the same distance (N - 1) / sqrt(N) under S^+, whatever it is: then S is shrunk towards
    a multiple of the identity (Ledoit and Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices"), which tells rows apart. Equal rows have the distance 0.
    """
    rows = len(features)
    centred = features - features.mean(axis=0)
    tolerance = ROUNDING * float(np.linalg.norm(features))
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int(np.sum(sizes > tolerance))
    left, sizes = left[:, :rank], sizes[:rank]
    along = left * sizes
    if rank == 0:
        return np.zeros(rows), "pseudo-inverse"
    if rank < distinct_rows(along, tolerance) - 1:
        return np.sqrt((rows - 1) * np.square(left).sum(axis=1)), "pseudo-inverse"
    energies = sizes**2 / rows
    share, mean = shrinkage(along, energies, features.shape[1])
    shrunk = (1 - share) * energies + share * mean
    return np.sqrt((np.square(along) / shrunk).sum(axis=1)), "shrunk"


def distinct_rows(rows: Floats, tolerance: float) -> int:
    """Return how many of the rows [N, R] are further apart than rounding."""
    distinct: list[Floats] = []
    for row in rows:
        if not distinct or np.linalg.norm(np.stack(distinct) - row, axis=1).min() > tolerance:
            distinct.append(row)
    return len(distinct)


def shrinkage(along: Floats, eigenvalues: Floats, features: int) -> tuple[float, float]:
    """Return the weight of the identity and its factor for covariance S, in its eigenvectors.

    `along` [N, R] are the centred rows, `eigenvalues` [R] those of S with 1 / N; all others of
    the `features` are 0. The weight is Ledoit and Wolf's b^2 / d^2, the factor their m.
    """
    rows = len(along)
    mean = float(eigenvalues.sum()) / features
    square = float(np.square(eigenvalues).sum())
    spread = square - features * mean**2
    norms = np.square(along).sum(axis=1)
    # |x x^T - S|^2 = |x|^4 - 2 x^T S x + |S|^2
    each = norms**2 - 2 * (np.square(along) @ eigenvalues) + square
    error = float(each.sum()) / rows**2
    return min(error, spread) / spread if spread > 0 else 1.0, mean


def first_token_features(run: CalibrationRun, sites: Sequence[Site]) -> Floats:
    """Return what the last block gives for the first token of every sample, [N, C].

    `run` is of the one graph whose sites these are.
    """
    features: list[Floats] = []

    def instrument(_: str, graph: ir.Graph) -> None:
        value = block_output(graph, sites)
        first = constant(graph, f"{FEATURES}/index", np.int64(0))
        made = add_node(graph, "Gather", [value, first], FEATURES, axis=1)
        made.dtype, made.shape = ir.DataType.FLOAT, ir.Shape([None, None])
        graph.outputs[:] = [made]  # the head is not computed

    def consume(_: str, outputs: Outputs) -> None:
        features.append(outputs[FEATURES].astype(np.float64))

    run.observe(instrument, consume)
    return np.concatenate(features)


def block_output(graph: ir.Graph, sites: Sequence[Site]) -> ir.Value:
    """Return the sum behind the last linear of the last block, [rows, T, C]."""
    last = [site for site in sites if site.role == LAST_OF_BLOCK][-1]
    value = values_by_name(graph)[last.output]
    while True:
        (node,) = value.consumers()
        value = node.outputs[0]
        if node.op_type == "Add" and not any(is_constant(v) for v in node.inputs):
            return value


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()
