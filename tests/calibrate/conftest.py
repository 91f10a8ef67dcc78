"""Tiny generators, exported once."""

from __future__ import annotations

import pytest

from .generators import TinyGenerator, make_generator


@pytest.fixture(scope="session", params=["var", "shared var", "rar"])
def generator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TinyGenerator:
    return make_generator(request.param, tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="session")
def tiny_var(tmp_path_factory: pytest.TempPathFactory) -> TinyGenerator:
    return make_generator("var", tmp_path_factory.mktemp("tiny_var"))
