"""Chart how the times of FP32 and of the engine spread over the rounds, part by part."""

from __future__ import annotations

from ..schema import Report
from .chart import Series
from .strips import Strip, Strips

CAPTION = (
    "A dot is a round; the marks are p50 (tall), p90 and p99. FP32 and the engine took turns, so "
    "that what slowed the machine down slowed both."
)
FP32_COLOUR, ENGINE_COLOUR = "soft", "accent"


def latency_charts(report: Report) -> tuple[Strips, ...]:
    """Return the chart of all timed parts; none where nothing was timed."""
    rows: list[Strip] = []
    for part, row in report.latency.items():
        rows.append(Strip(f"{part}, FP32", row.fp32.samples_ms, FP32_COLOUR))
        rows.append(Strip(f"{part}, engine", row.engine.samples_ms, ENGINE_COLOUR))
    if not rows:
        return ()
    return (
        Strips(
            title="How long a round takes",
            caption=CAPTION,
            unit="ms",
            rows=tuple(rows),
            series=(
                Series("FP32", (), FP32_COLOUR),
                Series("Engine as executed", (), ENGINE_COLOUR),
            ),
        ),
    )
