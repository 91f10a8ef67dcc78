"""Run the benchmark: `python -m arvg_trt.benchmarks.real_width`."""

from __future__ import annotations

from .real_width import main

if __name__ == "__main__":
    main()
