"""Format the numbers of reports, and name the candidates."""

from __future__ import annotations

import math
from collections.abc import Callable

from .schema import ENGINE, HALF_PRECISION, QDQ

CANDIDATES = {
    QDQ: "Q/DQ graph (reference session)",
    HALF_PRECISION: "its FP16 copy for TensorRT (reference session)",
    ENGINE: "Engine as executed",
}

Format = Callable[[float | None], str]


def number(decimals: int, unit: str = "", *, scale: float = 1) -> Format:
    """Return a formatter: infinity as its sign, None as "not measured", no minus zero."""

    def text(value: float | None) -> str:
        if value is None:
            return "not measured"
        if math.isinf(value):
            return "\u221e"
        return f"{value * scale:z.{decimals}f}{unit}"

    return text


DB, SSIM, SHARE = number(2, " dB"), number(4), number(2, " %", scale=100)
TIMES, MS = number(2, "\u00d7"), number(2, " ms")
NATS, TOKENS, DISTANCE = number(5, " nats"), number(1), number(5)


def megabytes(count: int) -> str:
    """Return bytes in MB of 10^6 bytes; small files in kB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
