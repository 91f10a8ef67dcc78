"""Run the command line as `python -m arvg_trt`."""

import os
import sys

# `-m` puts the current directory first on the path: nothing is imported from it, except this
# package where it lies there.
HERE = os.getcwd()
if __name__ == "__main__" and sys.path[:1] == [HERE]:
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == HERE:
        sys.path.append(HERE)
    del sys.path[0]

from .cli import main  # noqa: E402

if __name__ == "__main__":
    main()
