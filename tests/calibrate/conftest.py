"""Tiny generators, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from .generators import TinyGenerator, make_generator

Generators = Callable[[str], TinyGenerator]


@pytest.fixture(scope="session")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Generators:
    """By family, when a test asks for one."""
    return cache(lambda family: make_generator(family, tmp_path_factory.mktemp("generator")))


@pytest.fixture(params=["var", "shared var", "rar"])
def generator(request: pytest.FixtureRequest, generators: Generators) -> TinyGenerator:
    return generators(request.param)


@pytest.fixture
def tiny_var(generators: Generators) -> TinyGenerator:
    return generators("var")


@pytest.fixture
def tiny_rar_graphs(generators: Generators) -> TinyGenerator:
    return generators("rar")
