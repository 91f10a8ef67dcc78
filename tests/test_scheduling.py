"""The lists of files in conftest.py are of files that there are, and that take `finished`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import LONGEST, OF_FINISHED

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", LONGEST)
def test_a_long_file_exists(name: str) -> None:
    assert (TESTS / name).is_file()


def test_files_of_one_worker_are_those_that_take_the_fixture(
    request: pytest.FixtureRequest,
) -> None:
    found = {
        item.nodeid.partition("::")[0]
        for item in request.session.items
        if "finished" in getattr(item, "fixturenames", ())
    }
    if not found:
        pytest.skip("only some tests were collected")
    assert found <= OF_FINISHED
