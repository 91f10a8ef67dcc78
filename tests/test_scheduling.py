"""The files that conftest.py begins with are there; what stays is left out of collections."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from .conftest import LONGEST

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", LONGEST)
def test_a_long_file_exists(name: str) -> None:
    assert (TESTS / name).is_file()


def test_what_was_imported_and_collected_is_not_walked_again() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000 > len(gc.get_objects(generation=0))
