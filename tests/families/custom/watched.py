"""The beginning of programs that tests run to watch the memory that stages take."""

from __future__ import annotations

# Memory beside mapped files, which the system can take back; a thread runs `watch`.
WATCH = """
import sys, threading, time
from pathlib import Path

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

seen = []
def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)
"""
