"""Docs and schema say of a recipe what the structs take."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import pytest

import arvg_trt
from arvg_trt.commands.build import build
from arvg_trt.commands.stages import calibrate, quantize, validate
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.file import PRESETS, preset_names
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.recipe.reference import TABLES, json_schema, markdown
from arvg_trt.recipe.validate import ValidateOptions

DOCS = Path(str(arvg_trt.__file__)).resolve().parent / "docs" / "recipes.md"
COMMANDS = [
    (calibrate, CalibrateOptions),
    (quantize, QuantizeOptions),
    (build, BuildOptions),
    (validate, ValidateOptions),
]


def test_the_docs_have_the_tables_that_the_command_prints() -> None:
    section = DOCS.read_text().partition("<!-- keys -->\n")[2].partition("<!-- /keys -->")[0]
    assert section.strip() == markdown().strip()


@pytest.mark.parametrize("struct", TABLES.values(), ids=lambda struct: struct.__name__)
def test_every_key_is_described(struct: type[msgspec.Struct]) -> None:
    described = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"]
    assert described.keys() == {field.name for field in msgspec.structs.fields(struct)}
    assert all(key["description"].endswith((".", "]")) for key in described.values())


@pytest.mark.parametrize(
    ("command", "struct"), COMMANDS, ids=[struct.__name__ for _, struct in COMMANDS]
)
def test_every_key_is_an_option_of_its_command(command: click.Command, struct: object) -> None:
    names = {parameter.name for parameter in command.params}
    assert names >= {field.name for field in msgspec.structs.fields(struct)}


def test_the_schema_knows_the_tables_and_forbids_other_keys() -> None:
    schema = json_schema()["$defs"]
    assert {struct.__name__ for struct in TABLES.values()} <= schema.keys()
    assert all(table["additionalProperties"] is False for table in schema.values())


def test_presets_have_keys_of_the_schema_only() -> None:
    keys = json_schema()["$defs"]["Recipe"]["properties"].keys()
    assert preset_names()
    for name in preset_names():
        assert msgspec.toml.decode((PRESETS / f"{name}.toml").read_bytes()).keys() <= keys
