"""Run the benchmark: `python -m arvg_trt.benchmarks.tokenizer_bits`."""

from __future__ import annotations

from .tokenizer_bits import main

if __name__ == "__main__":
    main()
