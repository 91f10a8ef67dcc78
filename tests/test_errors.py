"""What messages say of many things at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import bounded


def test_a_few_names_are_said_as_they_are_and_many_are_counted() -> None:
    assert bounded(["a", "b", "c"], "samples") == "a, b, c"
    assert bounded(["a", "b", "c", "d"], "samples") == "4 samples, the first 3: a, b, c"
    assert bounded(["a", "b"], "reasons", most=1, separator="; ") == "2 reasons, the first 1: a"


@given(st.lists(st.text("ab", min_size=1, max_size=20)), st.integers(1, 8))
def test_no_list_is_longer_than_what_it_may_name(names: list[str], most: int) -> None:
    assert len(bounded(names, "names", most)) <= 30 + most * 22
