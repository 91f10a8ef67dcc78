"""Names that the built-in families give as texts are there: modules are imported when needed."""

from __future__ import annotations

from importlib import import_module

import pytest

from arvg_trt.runtime.families import built_in_families

NAMES = [
    pytest.param(name, id=f"{family.name} {kind}")
    for family in built_in_families()
    for kind, name in (("loop", family.loop), ("exporter", family.exporter))
    if name
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_given_as_a_text_is_there(name: str) -> None:
    module, _, attribute = name.partition(":")
    assert hasattr(import_module(module), attribute)
