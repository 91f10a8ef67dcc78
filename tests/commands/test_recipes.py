"""Presets listed, shown, written and adapted to other models of their family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arvg_trt.explain.recipes import adapt_recipe, preset_rows, require_weights
from arvg_trt.families import variants
from arvg_trt.families.variants import all_variants, find_model
from arvg_trt.recipe.file import PRESETS, load_recipe, preset_names
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.recipe.summary import summarize
from arvg_trt.runtime.labels import parse_labels

from ..command_line import arvg, assert_refused

ROOT = PRESETS.parent.parent


def test_each_preset_is_a_line_that_says_what_it_does() -> None:
    head, *lines = arvg("recipes").out.partition("\n\n")[0].splitlines()
    assert head.split() == ["preset", "model", "weights", "what", "it", "does"]
    assert [line.split()[0] for line in lines] == preset_names()
    assert [line.split()[1] for line in lines] == [load_recipe(n).model for n in preset_names()]
    assert all(len(line) <= 150 for line in lines)
    rows = {row["name"]: row for row in json.loads(arvg("recipes", "--json").out)["recipes"]}
    assert rows["var-w4a16"]["formats"] == "W4A16 in blocks of 32"
    assert rows["mar-fp8"]["backends"] == "TensorRT for RTX (sm89, sm120)"
    assert rows["rar-w8a8"]["family"] == "rar"
    # What two presets of a family do is never said in the same words.
    said = [(row["family"], row["description"], row["backends"]) for row in rows.values()]
    assert len(set(said)) == len(said)


def test_the_list_says_of_each_preset_whether_the_weights_of_its_model_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel has two of the minis, and here a folder has their names."""

    def weights() -> dict[str, str]:
        rows = json.loads(arvg("recipes", "--json").out)["recipes"]
        return {row["name"]: row["weights"] for row in rows}

    assert set(weights().values()) == {"installed", "published"}
    assert "missing" not in arvg("recipes").out
    for name in ("cosmos-mini-di8x8", "rar-mini"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(variants, "MODELS", tmp_path)
    found = weights()
    assert found["rar-w8a8"] == found["cosmos-mini-log4"] == "installed"
    assert found["var-w8a8"] == found["mar-fp8"] == "missing"
    assert found["cosmos-di8x8-int8"] == "published"
    out = arvg("recipes").out
    assert re.search(r"^var-w8a8 +var-mini +missing ", out, re.MULTILINE)
    assert re.search(r"^cosmos-di8x8-int8 +cosmos-di8x8 +to fetch ", out, re.MULTILINE)
    assert out.endswith("missing: pip install arvg-trt-minis\n")
    assert "arvg-trt run PRESET --model NAME --checkpoint" in out


MISSING = [row.name for row in preset_rows() if row.model in variants.IN_MINIS]


@pytest.mark.parametrize("name", MISSING)
def test_a_preset_without_weights_names_both_ways_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "MODELS", tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    outcome = arvg("run", name)
    assert_refused(
        outcome, 4, f"{name}: the weights of {recipe.model} are not installed", "arvg-trt-minis, or"
    )
    # The line names a model of the family that is published, and where.
    found = re.search(r"--model (\S+) --checkpoint ([^\s)]+)", outcome.err)
    assert found is not None
    entry = find_model(found[1])
    assert (entry.family, entry.hub) == (find_model(recipe.model).family, found[2])
    require_weights(name, adapt_recipe(name, recipe, found[1], found[2]))
    assert not list(tmp_path.iterdir())


def test_what_a_recipe_may_hold_is_printed_for_programs() -> None:
    keys = json.loads(arvg("recipes", "--keys", "--json").out)["keys"]
    text = arvg("recipes", "--keys").out
    assert len(keys) > 50
    assert all(f"| `{row['key']}` |" in text for row in keys)
    (gates,) = (row for row in keys if row["key"] == "gates")
    assert (gates["table"], gates["default"], gates["required"]) == ("[validate]", [], False)


def test_a_recipe_is_shown_as_it_was_written() -> None:
    written = (PRESETS / "var-w8a8.toml").read_text()
    assert arvg("recipes", "var-w8a8").out == written
    assert arvg("recipes", "show", "var-w8a8").out == written
    assert json.loads(arvg("recipes", "show", "var-w8a8", "--json").out) == {"recipe": written}


def test_a_written_recipe_is_of_the_model_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    words = ("write", "var-w8a8", "-o", file, "--model", "var-d16", "--checkpoint", "x/y")
    outcome = arvg("recipes", *words)
    assert (outcome.code, outcome.out) == (0, f"{file}\n")
    found, preset = load_recipe(file), load_recipe("var-w8a8")
    assert (found.model, found.checkpoint, found.workspace) == ("var-d16", "x/y", "out/var-d16")
    assert (found.quantize, found.calibrate) == (preset.quantize, preset.calibrate)
    assert preset.validate.gates and not found.validate.gates
    assert_refused(arvg("recipes", *words), 9, "is there already")


def test_a_recipe_written_for_its_own_model_keeps_its_words(tmp_path: Path) -> None:
    arvg("recipes", "write", "mar-w8a8", "-o", tmp_path / "a.toml")
    assert (tmp_path / "a.toml").read_bytes() == (PRESETS / "mar-w8a8.toml").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("show",),
        ("write", "var-w8a8"),
        ("var-w8a8", "-o", "x.toml"),
        ("show", "var-w8a8", "-o", "x.toml"),
        ("var-w8a8", "rar-w8a8"),
        ("--model", "var-d16"),
        ("var-w8a8", "--keys"),
    ],
    ids=" ".join,
)
def test_words_that_do_not_go_together_are_a_usage_error(words: tuple[str, ...]) -> None:
    assert arvg("recipes", *words).code == 2


@pytest.mark.parametrize("command", [("run",), ("recipes", "show")], ids=" ".join)
def test_a_model_of_another_family_is_refused_with_its_presets(command: tuple[str, ...]) -> None:
    outcome = arvg(*command, "var-w8a8", "--model", "rar-b")
    fitting = ", ".join(name for name in preset_names() if name.startswith("rar-"))
    text = f"var-w8a8: is for var models, and rar-b is a rar model (presets of rar: {fitting})"
    assert (outcome.code, outcome.err, outcome.out) == (3, f"error: {text}\n", "")
    assert_refused(arvg(*command, "var-w8a8", "--model", "gsq-mini"), 3, "no preset is of gsq")
    assert_refused(arvg(*command, "var-w8a8", "--model", "var-d17"), 4, "nearest: var-d16")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_every_model_of_its_family(name: str) -> None:
    recipe = load_recipe(name)
    family = find_model(recipe.model).family
    for entry in all_variants():
        if entry.family == family:
            found = adapt_recipe(name, recipe, entry.name, workspace=None)
            own = entry.name == recipe.model
            assert found == recipe if own else found.workspace == f"out/{entry.name}"
            assert (found.model, found.quantize) == (entry.name, recipe.quantize)
            assert summarize(found) == summarize(recipe)


def test_a_workspace_and_checkpoint_alone_leave_the_rest() -> None:
    recipe = load_recipe("var-w8a8")
    found = adapt_recipe("var-w8a8", recipe, None, "dir", "ws")
    assert (found.checkpoint, found.workspace) == ("dir", "ws")
    fields = [
        field for field in Recipe.__struct_fields__ if field not in ("checkpoint", "workspace")
    ]
    assert all(getattr(found, field) == getattr(recipe, field) for field in fields)


def labels_of(text: str) -> list[str]:
    words = text.replace("`", " ").split()
    return [words[k + 1] for k, word in enumerate(words[:-1]) if word == "--labels"]


@pytest.mark.parametrize(
    "file", ["README.md", "cli.py", "commands/images.py", *(f"docs/{n}.md" for n in ("engines",))]
)
def test_labels_of_examples_are_classes_of_the_minis(file: str) -> None:
    found = labels_of((ROOT / file).read_text(encoding="utf-8"))
    assert found
    for text in found:
        assert parse_labels([text.rstrip(".,)")], 10)
