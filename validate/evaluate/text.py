"""Write an evaluation as the lines that a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator

from ..formats import FID, LIKENESS, PERPLEXITY, Format
from .run import Evaluation

FIELDS: tuple[tuple[str, str, Format], ...] = (
    ("FID", "fid", FID),
    ("sFID", "sfid", FID),
    ("Inception score", "inception_score", PERPLEXITY),
    ("Inception score, images shuffled", "inception_score_shuffled", PERPLEXITY),
    ("precision", "precision", LIKENESS),
    ("recall", "recall", LIKENESS),
)


def evaluation_lines(found: Evaluation) -> Iterator[str]:
    """Yield a line for each measure that was taken, and for each that was not the reason."""
    if found.made:
        yield f"{found.made:,} images, {found.seconds:.1f} s"
    distribution = found.distribution
    if distribution is None:
        yield "nothing was measured: give --features NET.onnx for FID and the others"
    else:
        count = f"{distribution.images:,} images"
        yield f"{count}, {found.features}, against {found.reference or 'no reference'}"
        for title, name, text in FIELDS:
            value = getattr(distribution, name)
            if value is not None:
                yield f"{title:33}{text(value)}"
        if distribution.kid is not None:
            kid = distribution.kid
            yield f"{'KID':33}{kid.mean:.6f} ± {kid.deviation:.6f}"
        yield from distribution.notes
    for gate in found.gates:
        yield f"gate {gate.expression}: {gate.verdict}"
    if found.folder is not None:
        yield found.folder
