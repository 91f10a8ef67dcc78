"""The files that conftest.py begins with are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import LONGEST

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", LONGEST)
def test_a_long_file_exists(name: str) -> None:
    assert (TESTS / name).is_file()
