"""Measure a step of the ablation on a generator with logits: logits, sites, generated images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...graph.sites import load_sites
from ...runtime.generator import TEACHER_FORCED, Generated
from ...runtime.images import to_model
from ...runtime.tokenizer import ImageTokenizer
from ...validate.metrics.frechet import frechet_distance
from ..common import markdown_table
from .measure import (
    Distance,
    comparable,
    generated,
    graph_model,
    measure,
    setbacks,
    site_cells,
)
from .peers import PEERS, peers

BATCH = 4
OF_LOGITS = """\
Logits are those of all positions, teacher-forced on pictures that the FP32 model made from a seed
that calibration did not use; conditional and null rows alike. KL is that of the quantized from the
FP32 distribution, in nats a token. Sites are those whose outputs no fold changes: proj, fc1 and
fc2. "Tied" tokens are those whose two likeliest logits are closer in FP32 than the root mean
square error of a logit: a coin decides whether their top-1 agrees. Generated pictures are of FP32's
seeds; their Frechet distance to FP32's is that of the means and deviations of the latent channels
that the model's own encoder makes of them. The row FP32 is FP32 on other seeds: what chance makes.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one quantization; `tokens` is the share of generated pictures' tokens that stay."""

    format: str
    step: str
    distance: Distance | None
    tokens: float | None = None
    frechet: float | None = None


class Pictures:
    """Compare pictures with those that FP32 makes of `count` labels in turn."""

    def __init__(self, exported: Path, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._encoder = ImageTokenizer.open(exported)
        wanted = generated(exported, count, seed)
        self._tokens, self._features = wanted.tokens, self._moments(wanted)

    def compared(self, folder: Path, seed: int | None = None) -> tuple[float, float]:
        """Return the share of equal tokens and the Frechet distance, of FP32's seed or another."""
        found = generated(folder, self._count, self._seed if seed is None else seed)
        features = self._moments(found)
        same = float((found.tokens == self._tokens).mean())
        return same, frechet_distance(self._features, features)

    def _moments(self, made: Generated) -> NDArray[np.float64]:
        """Return the mean and deviation of each latent channel of the images, [N, 2C]."""
        latents = [self._encoder.encode(to_model(image))[1] for image in made.images]
        latent = np.concatenate(latents).astype(np.float64)
        return np.concatenate([latent.mean(axis=(2, 3)), latent.std(axis=(2, 3))], axis=1)


def run_steps(
    exported: Path,
    quantized: Iterator[tuple[str, str, Path]],
    held_out: Path,
    count: int,
    seed: int,
) -> Iterator[Row]:
    """Measure each (format, step, folder); `count` pictures are generated and compared."""
    tensors = comparable(load_sites(exported).of_graph(TEACHER_FORCED))
    pictures = Pictures(exported, count, seed) if count else None
    reference = graph_model(exported, tensors)
    if pictures is not None:
        yield Row("FP32", "other seeds", None, None, pictures.compared(exported, seed + 1)[1])
    for name, step, made in quantized:
        found = measure(reference, graph_model(made, tensors), held_out, BATCH, tensors)
        yield Row(name, step, found, *(pictures.compared(made) if pictures else ()))


def run_peers(
    exported: Path, samples: Path, checkpoint: Path | None, held_out: Path
) -> Iterator[Row]:
    reference = graph_model(exported)
    for name, make in peers(exported, samples, checkpoint):
        found = make()
        if found is not None:
            yield Row("W8A8", name, measure(reference, found, held_out, BATCH))


def table(rows: Sequence[Row]) -> str:
    header = (
        "format",
        "",
        "KL, nats",
        "top-1 equal",
        "tied",
        "logits SQNR, dB",
        "least site, dB",
        "median site, dB",
        "generated tokens equal",
        "Frechet distance",
    )
    return markdown_table(header, [cells(row) for row in rows])


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.format,
        row.step,
        *(distance_cells(row.distance) if row.distance else [""] * 6),
        "" if row.tokens is None else f"{row.tokens:.1%}",
        "" if row.frechet is None else f"{row.frechet:.4f}",
    )


def distance_cells(found: Distance) -> tuple[str, ...]:
    return (
        f"{found.kl:.6f}",
        f"{found.top1:.2%}",
        f"{found.tied:.1%}",
        f"{found.logits_db:.1f}",
        *site_cells(found.sites_db),
    )


def logit_setbacks(rows: Sequence[Row]) -> list[str]:
    """Name steps of ours whose KL is above that of the step before, within a format."""
    errors = [
        (row.format, row.step, row.distance.kl, f"{row.distance.kl:.6f}")
        for row in rows
        if row.distance and row.step not in PEERS
    ]
    return setbacks("KL", "nats", errors)
