"""Run the benchmark: `python -m arvg_trt.benchmarks.generate`."""

from __future__ import annotations

from .generate import main

if __name__ == "__main__":
    main()
