"""The line that `build` prints of what its engines are proved to compute."""

from __future__ import annotations

import msgspec
import pytest

from arvg_trt.engines.facts import BuildFacts, EngineProof, EngineRow, proof_line
from arvg_trt.workspace.manifest import Manifest


def engine(planned: int, proved: int | None, **proof: object) -> EngineRow:
    return EngineRow(
        backend="tensorrt_rtx 1.7",
        target="sm89",
        precision="INT8 + FP16",
        graph="g",
        bytes=1,
        build_seconds=1.0,
        int8_sites_planned=planned,
        int8_sites_proved=proved,
        proof=EngineProof(**proof) if proof else None,
        status="built, not executed",
    )


def line(*engines: EngineRow) -> str | None:
    results = msgspec.to_builtins(BuildFacts(engines=engines))
    return proof_line(Manifest(stage="build", inputs={}, options={}, versions={}, results=results))


def test_sites_add_up_and_shares_are_weighed_by_multiplications() -> None:
    first = engine(19, 18, macs=300, shares={"INT8": 0.8, "FP16": 0.2}, weight_sites_planned=4)
    second = engine(24, 24, macs=100, shares={"INT8": 1.0})
    assert line(first, second) == (
        "42 of 47 planned sites proved by the layer list; multiplications 85.0% INT8, 15.0% FP16"
    )


def test_without_counted_multiplications_there_are_no_shares() -> None:
    assert line(engine(2, 2, macs=0, shares={"INT8": 1.0})) == (
        "2 of 2 planned sites proved by the layer list"
    )


@pytest.mark.parametrize(
    "row",
    [engine(3, None), engine(0, 0, macs=9, shares={"FP16": 1.0})],
    ids=["no layer list", "nothing planned"],
)
def test_nothing_is_said_without_a_list_or_a_plan(row: EngineRow) -> None:
    assert line(row) is None
    assert line() is None
