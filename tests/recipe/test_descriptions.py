"""One description of each field: its limits hold in recipes, and schema and help say the same."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, ClassVar

import click
import msgspec
import pytest

from arvg_trt.commands.support.options import option_of
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.commands import GenerateOptions, SearchOptions
from arvg_trt.recipe.descriptions import FieldDescription, Groups, Range, fields_of, says
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.recipe.validate import ValidateOptions

STRUCTS: tuple[type[msgspec.Struct], ...] = (
    CalibrateOptions,
    QuantizeOptions,
    SearchOptions,
    BuildOptions,
    ValidateOptions,
    GenerateOptions,
)
LIMITED = [(struct, field) for struct in STRUCTS for field in fields_of(struct) if field.range]
BESIDE: dict[str, dict[str, Any]] = {  # what has to be given with a field
    "candidates": {"dgc": True, "samples": 1},
    "attention_bits": {"attention": "int8"},
}


def limited_name(value: object) -> str | None:
    return value.name if isinstance(value, FieldDescription) else None


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_is_under_one_heading(struct: Any) -> None:
    named = Counter(name for names in struct.GROUPS.values() for name in names)
    assert named == Counter(field.name for field in msgspec.structs.fields(struct))
    assert all(field.group and field.help for field in fields_of(struct))


def test_the_walk_finds_the_fields_with_limits() -> None:
    assert len(LIMITED) > 20


@pytest.mark.parametrize(("struct", "field"), LIMITED, ids=limited_name)
def test_a_number_beyond_its_limits_is_refused(
    struct: type[msgspec.Struct], field: FieldDescription
) -> None:
    beside = BESIDE.get(field.name, {})
    wrong = [field.range.least - 1, math.nan]
    if field.range.most is not None:
        wrong.append(field.range.most + 1)
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{field.name} must be "):
            struct(**beside, **{field.name: value})
    limits = {field.range.least, field.range.most, *field.range.besides} - {None}
    assert {field.range.problem(value) for value in limits} == {None}


@pytest.mark.parametrize(("struct", "field"), LIMITED, ids=limited_name)
def test_the_schema_has_the_same_limits(
    struct: type[msgspec.Struct], field: FieldDescription
) -> None:
    found = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"][field.name]
    if field.range.besides:
        inside = {*range(field.range.least, field.range.most + 1)}
        assert {*found["enum"]} == inside | {*field.range.besides, None}
        return
    assert found["minimum"] == field.range.least
    assert found.get("maximum") == field.range.most


@pytest.mark.parametrize(("struct", "field"), LIMITED, ids=limited_name)
def test_help_has_the_limits(struct: type[msgspec.Struct], field: FieldDescription) -> None:
    command = click.Command("c")
    option_of(field)(command)
    (option,) = command.params
    if isinstance(option.type, click.IntRange):
        assert (option.type.min, option.type.max) == (field.range.least, field.range.most)
    else:
        assert option.help.endswith(f"{field.range.text}]")


def test_a_range_is_said_in_words() -> None:
    assert Range(1).text == Range(1, 10**7).text == "at least 1"
    assert Range(0, 4096).text == "0 to 4,096"
    assert Range(2, 8, besides=(32,)).text == "2 to 8, or 32"


def test_a_description_has_what_the_struct_declares() -> None:
    class Toy(msgspec.Struct, kw_only=True):
        GROUPS: ClassVar[Groups] = {"Toys": ("many_words",)}
        many_words: Annotated[tuple[str, ...], says("Words to take.", flag="one_word")] = ("a",)
        half: Annotated[float | None, msgspec.Meta(description="A half.")] = None
        needed: int

    many, half, needed = fields_of(Toy)
    assert (many.name, many.flag, many.help) == ("many_words", "one-word", "Words to take.")
    assert (many.value.kind, many.value.items[0].kind) == ("list", "text")
    assert (many.default, many.group, many.range) == (("a",), "Toys", None)
    assert (half.value.kind, half.default, half.required) == ("number", None, False)
    assert (needed.required, needed.flag, needed.help) == (True, "needed", "")


def test_a_type_that_no_option_has_is_an_error() -> None:
    class Toy(msgspec.Struct):
        odd: dict[str, int]

    with pytest.raises(TypeError, match="no option has the type"):
        fields_of(Toy)
