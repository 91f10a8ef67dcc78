"""Lock a file, so that one process at a time works in a folder; it is free when its holder ends.

POSIX has `flock`, Windows locks a range of bytes. The package filelock has both, but where a file
system has no `flock` it leaves a marker, which would stay after a kill and keep everyone out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.1
# Of the byte that is locked on Windows, where others cannot read what is locked: behind the number.
LOCKED_BYTE = 2**30
TAKEN = (errno.EACCES, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def try_lock(stream: IO[str]) -> bool:
        """Lock an open file for this process; return whether no other holds it."""
        os.lseek(stream.fileno(), LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise
        return True

    def wait_for_lock(stream: IO[str]) -> None:
        """Lock an open file as soon as no other process holds it."""
        while not try_lock(stream):  # the system's own wait gives up after ten seconds
            time.sleep(POLL_SECONDS)

else:
    import fcntl

    def try_lock(stream: IO[str]) -> bool:
        """Lock an open file for this process; return whether no other holds it."""
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for_lock(stream: IO[str]) -> None:
        """Lock an open file as soon as no other process holds it."""
        fcntl.flock(stream, fcntl.LOCK_EX)


def name_holder(stream: IO[str]) -> None:
    """Write the number of this process into a file that it has locked."""
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()


def holder_of(stream: IO[str]) -> int | None:
    """Return the number of the process that holds a lock, as far as the file says it."""
    stream.seek(0)
    written = stream.read(20)
    return int(written) if written.isascii() and written.isdigit() else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait for a process that holds it."""
    with path.open("a+") as stream:
        wait_for_lock(stream)
        yield
