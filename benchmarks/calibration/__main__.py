"""Run the benchmark: `python -m arvg_trt.benchmarks.calibration`."""

from __future__ import annotations

from .calibration import main

if __name__ == "__main__":
    main()
