"""Let freed tensors go back to the system at once, so that a process takes what its tensors take."""

from __future__ import annotations

import ctypes
from contextlib import suppress

LARGE_BYTES = 2**20
_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""


def return_large_blocks() -> None:
    """Have blocks of LARGE_BYTES or more mapped one by one, for the rest of this process.

    glibc does so at first, but with each block that is freed it raises the size from which it does, up to 32 MiB.
    Tensors below lie in one heap then, and the gap that a freed one leaves between two kept ones may be too short for
    the next of the same size, since torch asks for aligned blocks: a backward pass was seen to take twice what it
    keeps, and more or less of that from one processor and run to the next. Time was the same within a tenth.

    Other C libraries have no such setting, and need none.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
