"""Set up a process of tests: its processor, and what Python's garbage collector leaves out.

Threads of two workers on the same two processors wait for each other: two tests of recipes, side
by side, took a third more processor time. So each worker, and what it starts, has one of its own.

Torch, the tests and the exporter's tables are some 620,000 objects. Walking them all takes 0.4 s,
and happened several times while tests were collected and once for every graph that was exported.

This is a plugin of pytest, since numpy and torch count the processors when they are imported, and
most of what stays is made before a conftest.py is read.
"""

from __future__ import annotations

import gc
import os

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0" and so on; unset without xdist

if WORKER is not None and hasattr(os, "sched_setaffinity"):  # not on macOS
    PROCESSORS = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {PROCESSORS[int(WORKER.removeprefix("gw")) % len(PROCESSORS)]})

gc.disable()  # nothing of what is imported and collected is garbage


def keep() -> None:
    """Take what there is now for what stays: later collections leave it out."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    keep()
    gc.enable()
