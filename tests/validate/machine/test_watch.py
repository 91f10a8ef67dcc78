"""A machine is busy by what others do before, during or after; and unknown is not idle."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from arvg_trt.validate.machine.processor import Reading
from arvg_trt.validate.machine.watch import BUSY, MachineLoad, Watch


def watched(*work: float, own: float = 0.0) -> MachineLoad:
    """Return what is found where others keep so many processors busy in each of three seconds."""
    busy = itertools.accumulate((each + own for each in work), initial=100.0)
    readings = iter([Reading(float(k), each, own * k) for k, each in enumerate(busy)])
    pauses: list[float] = []
    with Watch(read=lambda: next(readings), pause=pauses.append) as watch:
        assert len(pauses) == 1
    assert len(pauses) == 2
    return msgspec.structs.replace(watch.found, processors=4)


def test_what_others_do_is_told_apart_by_time() -> None:
    found = watched(0.1, 0.2, 0.3, own=2.0)
    told = (found.others_before, found.others_during, found.others_after)
    assert told == pytest.approx((0.1, 0.2, 0.3))
    assert found.busy is False and found.most == pytest.approx(0.3)


@pytest.mark.parametrize("at", range(3))
def test_more_than_a_tenth_of_the_processors_at_any_time_is_busy(at: int) -> None:
    limit = 4 * BUSY
    assert watched(*(limit + 0.01 if k == at else 0.0 for k in range(3))).busy is True
    assert watched(*(limit - 0.01 if k == at else 0.0 for k in range(3))).busy is False


def test_a_busy_machine_says_by_how_much() -> None:
    assert watched(0.0, 1.26, 0.0).text == "others kept 1.3 of 4 processors busy"


def test_a_system_that_tells_nothing_is_neither_busy_nor_idle() -> None:
    with Watch(read=lambda: None, pause=lambda seconds: None) as watch:
        pass
    assert watch.found.busy is None and watch.found.most is None and watch.found.text == ""


def test_what_is_timed_may_fail() -> None:
    """The error goes on, and nothing is waited for behind it."""
    pauses: list[float] = []
    with pytest.raises(ValueError, match="inside"), Watch(read=lambda: None, pause=pauses.append):
        raise ValueError("inside")
    assert len(pauses) == 1
