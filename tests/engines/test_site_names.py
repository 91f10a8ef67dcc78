from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.engines.site_names import grouped_names


def written_out(text: str) -> list[str]:
    """Return every name that a line of grouped names stands for."""
    found = []
    for name in re.split(r", (?![^{]*})", text):
        parts = re.split(r"\{([^}]*)\}", name)
        choices = [numbers(part) if k % 2 else [part] for k, part in enumerate(parts)]
        found += ["".join(chosen) for chosen in product(*choices)]
    return found


def numbers(part: str) -> list[str]:
    chosen: list[str] = []
    for run in part.split(","):
        first, _, last = run.partition("-")
        chosen += [str(k) for k in range(int(first), int(last) + 1)] if last else [first]
    return chosen


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["head"], "head"),
        (["b.0.q", "b.1.q", "b.3.q"], "b.{0-1,3}.q"),
        (["d.0.b.0", "d.0.b.1", "d.1.b.0", "d.1.b.1", "d.2.b.0"], "d.{0-1}.b.{0-1}, d.2.b.0"),
        (["a.1", "a.01", "a.2"], "a.{01,1-2}"),
    ],
)
def test_names_that_differ_in_numbers_stand_together(names: list[str], text: str) -> None:
    assert grouped_names(names) == text


NAMES = st.from_regex(r"[a-c](\.([0-9]{1,2}|[a-c])){0,4}", fullmatch=True)


@given(st.lists(NAMES, max_size=40))
def test_no_name_is_lost_or_made_up(names: list[str]) -> None:
    text = grouped_names(names)
    found = written_out(text) if text else []
    assert sorted(found) == sorted(set(names))
