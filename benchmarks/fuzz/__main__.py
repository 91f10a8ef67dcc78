"""Run the benchmark: `python -m arvg_trt.benchmarks.fuzz`."""

from __future__ import annotations

from .fuzz import main

if __name__ == "__main__":
    main()
