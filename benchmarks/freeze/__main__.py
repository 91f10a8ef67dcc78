"""Run the benchmark: `python -m arvg_trt.benchmarks.freeze`."""

from __future__ import annotations

from .freeze import main

if __name__ == "__main__":
    main()
