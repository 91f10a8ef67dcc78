"""Run the benchmark: `python -m arvg_trt.benchmarks.ablation`."""

from __future__ import annotations

from .ablation import main

if __name__ == "__main__":
    main()
