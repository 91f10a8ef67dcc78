"""Tiny generators, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from ..families.generators import TinyGenerator, make_rar, make_var
from ..families.rar.models import TinyRar

Generators = Callable[[str], TinyGenerator]


@pytest.fixture(scope="session")
def generators(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generators:
    """By family, when a test asks for one."""

    @cache
    def make(family: str) -> TinyGenerator:
        folder = tmp_path_factory.mktemp("generator")
        if family != "rar":
            return make_var(family, folder)
        tiny: TinyRar = request.getfixturevalue("tiny_rar")
        return make_rar(tiny.folder, folder)

    return make


@pytest.fixture(params=["var", "shared var", "rar"])
def generator(request: pytest.FixtureRequest, generators: Generators) -> TinyGenerator:
    return generators(request.param)


@pytest.fixture
def tiny_var(generators: Generators) -> TinyGenerator:
    return generators("var")


@pytest.fixture
def tiny_rar_graphs(generators: Generators) -> TinyGenerator:
    return generators("rar")
