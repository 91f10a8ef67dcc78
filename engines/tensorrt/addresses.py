"""Give a process the same addresses every time, so that a plan has the same bytes.

TensorRT for RTX lists the outputs of a plan in an order by address: graphs with several got other
bytes now and then (265 of them; kernels are equal). So the process has no address randomization,
and compiles in a thread whose heap has no holes: what was allocated before, down to the number of
environment variables, else decides where outputs lie. Polygraphy allocates between parsing and
building too: without a second filling there, two of six plans of a generator's step were others.
"""

from __future__ import annotations

import ctypes
import os
import sys

ADDR_NO_RANDOMIZE = 0x0040000
NO_CHANGE = 0xFFFFFFFF
TRIED = "ARVG_TRT_FIXED_ADDRESSES"  # a process that has started itself anew does so no further
LARGE, PAGE, STEP = 2**17, 4096, 16  # above LARGE, blocks are the system's; STEP is malloc's


def fill_heap() -> None:
    """Allocate all free blocks of this thread's heap, so that later ones follow one another."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    sizes = [(size, 8) for size in range(LARGE - PAGE, PAGE, -PAGE)]
    sizes += [(size, 64) for size in range(PAGE, 0, -STEP)]
    for size, count in sizes:
        for _ in range(count):
            malloc(ctypes.c_size_t(size))


def fix_addresses() -> bool:
    """Restart this process without address randomization; return whether it has none."""
    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None, use_errno=True).personality
    now = personality(ctypes.c_ulong(NO_CHANGE))
    fixed = now != -1 and bool(now & ADDR_NO_RANDOMIZE)
    if fixed or now == -1 or TRIED in os.environ:
        return fixed
    if personality(ctypes.c_ulong(now | ADDR_NO_RANDOMIZE)) == -1:
        return False
    # Hashes of names decide what Python allocates.
    os.execve(sys.executable, sys.orig_argv, os.environ | {TRIED: "1", "PYTHONHASHSEED": "0"})
