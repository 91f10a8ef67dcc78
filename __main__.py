"""Run the command line as `python -m arvg_trt`."""

from .cli import main

if __name__ == "__main__":
    main()
