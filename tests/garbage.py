"""Keep Python's garbage collector away from what stays for the whole run.

Torch, the tests and the exporter's tables are some 620,000 objects. Walking them all takes 0.4 s,
and happened several times while tests were collected and once for every graph that was exported.
This is a plugin of pytest, since most of it is done before a conftest.py is read.
"""

from __future__ import annotations

import gc

import pytest

gc.disable()  # nothing of what is imported and collected is garbage


def keep() -> None:
    """Take what there is now for what stays: later collections leave it out."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    keep()
    gc.enable()
