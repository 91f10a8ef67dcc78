"""Completion offers models, presets, targets, sites; and the headings of help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete

import arvg_trt
from arvg_trt.cli import cli
from arvg_trt.graph.sites import load_sites
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.descriptions import fields_of
from arvg_trt.recipe.file import preset_names
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.recipe.validate import ValidateOptions

from ...command_line import arvg, commands
from ...families.rar.models import TinyRar

DOCS = Path(str(arvg_trt.__file__)).resolve().parent / "docs" / "recipes.md"


def items(*words: str) -> list[CompletionItem]:
    """Return what is offered for the last of the words of a command line."""
    shell = ShellComplete(cli, {}, "arvg-trt", "_ARVG_TRT_COMPLETE")
    return shell.get_completions([*words[:-1]], words[-1])


def offered(*words: str) -> list[str]:
    return [item.value for item in items(*words)]


def test_models_are_completed_with_the_families_without_a_size() -> None:
    found = offered("export", "")
    assert {"var-d16", "var", "cosmos-mini-di8x8", "onnx"} <= {*found}
    assert len(found) == len({*found})
    assert offered("export", "rar-m") == ["rar-mini"]


@pytest.mark.parametrize(
    "words",
    [("run",), ("recipes",), ("quantize", "ws", "--recipe"), ("search", "ws", "--recipe")],
    ids=" ".join,
)
def test_presets_are_completed_else_files(words: tuple[str, ...]) -> None:
    assert offered(*words, "") == preset_names()
    (item,) = items(*words, "./mine")
    assert (item.value, item.type) == ("./mine", "file")


@pytest.mark.parametrize("words", [("build", "ws"), ("analyze", "a.onnx")], ids=" ".join)
def test_targets_are_completed(words: tuple[str, ...]) -> None:
    assert {"rtx4090", "orin", "sm89"} <= {*offered(*words, "--target", "")}
    assert offered(*words, "--target", "sm12") == ["sm120", "sm121"]


@pytest.mark.parametrize("option", ["--exclude", "--include", "--per-tensor"])
def test_sites_of_the_workspace_are_completed(option: str, tiny_rar: TinyRar) -> None:
    # A site of several graphs is one name.
    names = [*dict.fromkeys(site.name for site in load_sites(tiny_rar.folder).sites)]
    line = ("quantize", str(tiny_rar.workspace), "--weight-bits", "4", option)
    assert offered(*line, "") == names
    start = names[0][:-1]
    found = offered(*line, "head", option, start)
    assert found == [name for name in names if name.startswith(start)]
    assert names[0] in found


def test_a_folder_without_an_export_has_no_sites(tmp_path: Path) -> None:
    assert offered("quantize", str(tmp_path / "none"), "--exclude", "") == []
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "sites.json").write_text("{")
    assert offered("quantize", str(tmp_path), "--exclude", "") == []


def test_a_shell_is_answered_without_torch_or_onnx() -> None:
    code = (
        "import sys; from arvg_trt.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    asked = {"COMP_WORDS": "arvg-trt export var-m", "COMP_CWORD": "2"}
    environment = {**os.environ, **asked, "_ARVG_TRT_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    answer, loaded = done.stdout.splitlines()
    assert answer == "plain,var-mini"
    assert not {"torch", "onnx", "onnx_ir", "onnxruntime"} & {*loaded.split()}


def headings(command: str) -> list[str]:
    lines = arvg(command, "--help").out.splitlines()
    return [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]


def test_help_lists_options_under_headings() -> None:
    assert headings("calibrate") == ["Samples", "Shards", "Distances (DGC)", "Options"]
    assert headings("doctor") == ["Options"]
    sections = arvg("quantize", "--help").out.split("\n\n")
    rounding = next(text for text in sections if text.startswith("Rounding of weights:"))
    assert "--rounding" in rounding and "--max-memory" in rounding
    assert "--exclude" not in rounding


@pytest.mark.parametrize("command", commands())
def test_help_lists_every_option_once(command: str) -> None:
    out = arvg(*command.split(), "--help").out
    for parameter in commands()[command].params:
        if isinstance(parameter, click.Option):
            lines = [line for line in out.splitlines() if line.startswith("  -")]
            found = [line for line in lines if parameter.opts[-1] in line.replace(",", " ").split()]
            assert len(found) == 1, parameter.name


def test_the_docs_say_which_options_no_recipe_has() -> None:
    tables = {
        "export": Recipe,
        "calibrate": CalibrateOptions,
        "quantize": QuantizeOptions,
        "build": BuildOptions,
        "validate": ValidateOptions,
    }
    shared = {"recipe_name", "name", "as_json", "debug"}
    alone = {
        parameter.opts[0]
        for command, struct in tables.items()
        for parameter in cli.commands[command].params
        if isinstance(parameter, click.Option)
        and parameter.name not in shared | {field.name for field in fields_of(struct)}
    }
    text = DOCS.read_text().partition("On the command line alone:")[2].partition("\n\n")[0]
    assert {*re.findall(r"--[a-z-]+", text)} == alone
