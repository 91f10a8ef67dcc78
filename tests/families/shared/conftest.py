"""The families that a test of several goes through; `parametrize` with `indirect` takes fewer."""

from __future__ import annotations

import pytest

from .models import TinyExported
from .token_families import FAMILIES, TokenFamily


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TokenFamily:
    return FAMILIES[request.param]


@pytest.fixture
def tiny(request: pytest.FixtureRequest, family: TokenFamily) -> TinyExported:
    """The export of the family's tiny model."""
    found: TinyExported = request.getfixturevalue(f"tiny_{family.name}")
    return found
