"""Give each test worker, and what it starts, a processor of its own.

Threads of two workers on the same two processors wait for each other: two tests of recipes, side
by side, took a third more processor time. This is a plugin of pytest, since numpy and torch count
the processors when they are imported.
"""

from __future__ import annotations

import os

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0" and so on; unset without xdist

if WORKER is not None and hasattr(os, "sched_setaffinity"):  # not on macOS
    PROCESSORS = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {PROCESSORS[int(WORKER.removeprefix("gw")) % len(PROCESSORS)]})
