"""A gate that failed says what to do, by what it reads and by what the workspace has."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from arvg_trt.cli import cli
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.validate.advice import advice
from arvg_trt.validate.report.gates import evaluate, parse_gates
from arvg_trt.validate.report.schema import METRIC_NAMES
from arvg_trt.workspace.workspace import RECIPE_FILE


def advised(root: Path, gate: str, value: float, options: ValidateOptions | None = None) -> str:
    metric = gate.partition(">")[0]
    failed = evaluate(parse_gates([gate], METRIC_NAMES), {metric: value})
    return advice(failed, (), root / "validate" / "w8", options or ValidateOptions())


def test_a_gate_on_a_time_without_an_engine_says_how_to_get_one(tmp_path: Path) -> None:
    found = evaluate(parse_gates(["speedup>=1", "kl<=1"], METRIC_NAMES), {"kl": 2.0})
    given = ((), tmp_path / "validate" / "w8", ValidateOptions())
    assert "build one for the CPU" in advice(found[:1], *given)
    assert "--rounds" in advice(found, *given) and "build one" not in advice(found[1:], *given)


def test_a_workspace_without_a_recipe_is_diagnosed_on_what_was_held_out(tmp_path: Path) -> None:
    root = tmp_path / "my ws"
    options = ValidateOptions(feeds="held out.npz", samples=12, rounds=0)
    text = advised(root, "output_sqnr_db>=30", 20.0, options)
    command = text.split("`")[1]
    words = shlex.split(command)
    assert words == [
        *("arvg-trt", "diagnose", str(root), "--name", "w8", "--feeds", "held out.npz")
    ]
    group = cli.commands["diagnose"]
    assert group.make_context("diagnose", words[2:]) and "recipe" not in text


@pytest.mark.parametrize("gate", ["speedup>=1.2", "compression>=3"])
def test_no_site_is_blamed_for_a_time_or_a_size(gate: str, tmp_path: Path) -> None:
    text = advised(tmp_path, gate, 1.0)
    assert "diagnose" not in text and "recipe" not in text


def test_a_workspace_with_a_recipe_has_that_changed(tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).touch()
    text = advised(tmp_path, "output_sqnr_db>=30", 20.0, ValidateOptions(feeds="held.npz"))
    command, rest = text.split("`")[1:]
    # The recipe names the samples.
    assert shlex.split(command) == ["arvg-trt", "diagnose", str(tmp_path), "--name", "w8"]
    assert rest == " says which sites to raise; then change the recipe or the gate"
    slow = advised(tmp_path, "speedup>=1.2", 1.0)
    assert slow == "open the report, then change the recipe or the gate"
