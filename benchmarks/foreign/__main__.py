"""Run the benchmark: `python -m arvg_trt.benchmarks.foreign`."""

from __future__ import annotations

from .models import main

if __name__ == "__main__":
    main()
