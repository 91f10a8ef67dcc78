"""Start Python so that it imports nothing from the current directory.

`python -m` and `python -c` put that directory first on `sys.path`: a `random.py` or a folder
`triton` that lies where the user works would be imported in place of the real one. Python 3.11 has
`-P` against it, Python 3.10 has nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).absolute().parents[1].parent  # the folder that holds the package
SAFE = "PYTHONSAFEPATH"  # the variable of `-P`, read from Python 3.11 on
# Only what is built in is imported before the directory has left the path. Where the package is
# found by that directory alone, as in `python -m arvg_trt` beside a clone, it comes last.
RUN_MODULE = """\
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
package, root, module = sys.argv[1:4]
del sys.argv[1:4]
import importlib.util
import runpy
if importlib.util.find_spec(package) is None:
    sys.path.append(root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package with these arguments."""
    return [sys.executable, "-c", RUN_MODULE, PACKAGE, str(ROOT), module, *arguments]


@contextmanager
def outside_current_directory() -> Iterator[None]:
    """Let what starts Python meanwhile, such as a pool, import nothing from the current directory.

    `multiprocessing` writes its own command lines: the first, of its tracker of resources, where a
    pool is made, the others where work is handed in. Workers get the `sys.path` of this process
    later; the one who makes the pool says in which directory they work.
    """
    if hasattr(sys.flags, "safe_path"):
        before = os.environ.get(SAFE)
        os.environ[SAFE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[SAFE]
            else:
                os.environ[SAFE] = before
    else:
        with in_library():
            yield


@contextmanager
def in_library() -> Iterator[None]:
    """Make the folder of Python's own modules current: to import from it changes nothing."""
    before = Path.cwd()
    os.chdir(Path(os.__file__).parent)
    try:
        yield
    finally:
        os.chdir(before)
