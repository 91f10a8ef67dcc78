"""Sites are counted by what is quantized of them, and those that are not by the reason."""

from __future__ import annotations

from pathlib import Path

import msgspec

from arvg_trt.commands.support.figures import MOST_REASONS, quantized_lines
from arvg_trt.quantize.facts import QuantizationFacts, SiteRow, count_sites
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.stage import StageResult


def row(weight: str, activation: str = "float", reason: str | None = None) -> SiteRow:
    return SiteRow(name="s", graph="g", weight=weight, activation=activation, reason=reason)


def test_weights_alone_and_attention_products_count_as_quantized() -> None:
    found = count_sites(
        [
            row("INT8 per-channel", "INT8 per-tensor"),
            row("INT4 per-block of 32", reason="its input stays in high precision"),
            row("-", "FP8 per-tensor"),
            row("-", reason="attention stays"),
            row("float16"),
        ]
    )
    assert (found.quantized, found.of, found.weights_only) == (3, 5, 1)
    assert found.high_precision == {"attention stays": 1, "as the plan says": 1}


def test_reasons_that_differ_in_a_number_alone_are_one() -> None:
    reaches = "its product reaches {} in front of the channel factor, too near float16's 65504"
    rows = [row("float16", reason=reaches.format(value)) for value in ("6.1e+04", "61234.5")]
    found = count_sites(
        [*rows, row("float16", reason="excluded by --exclude or the recipe")]
    ).high_precision
    both, one = found.items()
    assert both == (reaches.format("…"), 2)
    assert one == ("excluded by --exclude or the recipe", 1)
    # A reason of one site, or of sites with the same number, keeps it.
    same = count_sites([rows[0], rows[0]]).high_precision
    assert same == {reaches.format("6.1e+04"): 2}


def test_a_reason_that_was_copied_from_a_terminal_counts_with_its_like() -> None:
    reasons = ("kept: above … dB", "kept: above 5 dB", "kept: above 6 dB", "… and 7 of … and 8")
    found = count_sites([row("float16", reason=each) for each in reasons]).high_precision
    assert found == {"kept: above … dB": 3, "… and 7 of … and 8": 1}


def lines(reasons: int) -> list[str]:
    rows = [row("float16", reason=f"reason {'x' * k}") for k in range(reasons)]
    facts = QuantizationFacts(sites=tuple(rows), packed_bytes=1, fp32_bytes=2, quantized=0)
    results = msgspec.to_builtins(facts)
    manifest = Manifest(stage="quantize", inputs={}, options={}, versions={}, results=results)
    folder = Path("ws/quantize/q")
    return quantized_lines(StageResult(folder=folder, manifest=manifest, seconds=0, skipped=False))


def test_many_reasons_are_counted_together_and_the_plan_has_each() -> None:
    assert len(lines(MOST_REASONS + 1)) == 1 + MOST_REASONS + 1
    *_, last = lines(MOST_REASONS + 3)
    assert len(lines(MOST_REASONS + 3)) == 1 + MOST_REASONS + 1
    assert last == "  3 in high precision for other reasons: ws/quantize/q/plan.json"
