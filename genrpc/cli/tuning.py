"""What a process that does nothing but serve can have otherwise than Python's defaults.

Measured on 2 cores beside plain grpcio; docs/performance.md has the figures. A library must not
do any of it to a process of its user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

MEBIBYTE = 1024 * 1024

# mallopt(3) of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MALLOC = (
    (_M_MMAP_THRESHOLD, 32 * MEBIBYTE),
    (_M_TRIM_THRESHOLD, 64 * MEBIBYTE),
    (_M_TOP_PAD, 4 * MEBIBYTE),
)
"""Blocks up to this size come from the heap; it keeps so much, and takes so much at once."""


def for_serving() -> None:
    """Keep memory that large payloads have used, and look for garbage in what is new only."""
    _keep_memory()
    gc.collect()
    gc.freeze()  # what was imported until here stays: no collection need look at it


def _keep_memory() -> None:
    """Let malloc give memory back to the system more rarely.

    By default each payload of half a megabyte comes fresh from the system, page by page, and goes
    back to it: a third of what receiving one costs.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc: as it is, then
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC:
            mallopt(parameter, value)
