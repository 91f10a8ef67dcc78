"""Write what the benchmark of searched bits measured, as a page of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...recipe.quantize import FLOAT_BITS
from ...workspace.stage import StageResult
from ..common import environment_line, fixed, markdown_table

TOKENIZER = "cosmos-mini-di8x8"
GENERATOR = "var-mini"
FOUND = "found"


@dataclass(frozen=True, slots=True)
class TokenizerRow:
    """Hold a PSNR in dB against the images, and how far it is below the found plan's.

    The difference is paired over images, with two standard errors.
    """

    name: str
    bytes: int
    psnr: float
    tokens_equal: float
    below_found: float
    error: float


@dataclass(frozen=True, slots=True)
class GeneratorRow:
    """Hold the KL of the logits in nats a token, and how often the arg-max is FP32's."""

    name: str
    activation_bits: int
    avg_bits: float
    bytes: int
    kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class SearchRow:
    """Hold what a search predicted, measured on its samples, and took."""

    name: str
    predicted: float
    measured: float
    quantized: float
    uniform: float | None
    seconds: float

    @classmethod
    def of(cls, name: str, done: StageResult) -> SearchRow:
        found = done.manifest.results
        return cls(
            name=name,
            predicted=found["predicted_loss"],
            measured=found["measured_loss"],
            quantized=found["quantized_loss"],
            uniform=found["uniform_loss"],
            seconds=done.seconds,
        )


def report(
    tokenizer: Sequence[TokenizerRow],
    generator: Sequence[GeneratorRow],
    searches: Sequence[SearchRow],
    about: str,
    found: Mapping[str, object],
) -> str:
    of_tokenizer = markdown_table(
        ["weights", "bytes", "PSNR, dB", "tokens equal", "below the found plan, dB"],
        [
            [
                row.name,
                f"{row.bytes:,}",
                f"{row.psnr:.3f}",
                f"{row.tokens_equal:.1%}",
                "" if row.name == FOUND else f"{fixed(row.below_found, 3)} ± {row.error:.3f}",
            ]
            for row in tokenizer
        ],
    )
    of_generator = markdown_table(
        ["weights", "activations", "bits a weight", "bytes", "KL, nats", "top-1 equal"],
        [
            [
                row.name,
                "float" if row.activation_bits == FLOAT_BITS else row.activation_bits,
                f"{row.avg_bits:.2f}",
                f"{row.bytes:,}",
                f"{row.kl:.5f}",
                f"{row.top1:.2%}",
            ]
            for row in generator
        ],
    )
    of_searches = markdown_table(
        ["search", "predicted", "measured", "quantized", "one width", "seconds"],
        [
            [
                row.name,
                *(f"{v:.3g}" for v in (row.predicted, row.measured, row.quantized)),
                "" if row.uniform is None else f"{row.uniform:.3g}",
                f"{row.seconds:.0f}",
            ]
            for row in searches
        ],
    )
    return f"""# Searched bits

{about}

## {TOKENIZER}, weights alone

{of_tokenizer}

## {GENERATOR}

{of_generator}

## The searches

Losses on the samples of each search: what the sum of the sites' losses and the measured curves
predict, what the plan measures with rounded weights and inputs, what its Q/DQ graphs measure, and
one width for all sites under the same budget.

{of_searches}

Written by `python -m arvg_trt.benchmarks.search`; seconds on a machine with other work.
{environment_line(found)}
"""
