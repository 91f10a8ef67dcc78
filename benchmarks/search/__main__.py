"""Run the benchmark: `python -m arvg_trt.benchmarks.search`."""

from __future__ import annotations

from .search import main

if __name__ == "__main__":
    main()
