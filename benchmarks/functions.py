"""The functions that are called. Every peer serves these; genrpc by the names in TARGETS.

They do next to nothing, so that what is measured is the way there and back.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any

_tallied: list[None] = []
"""Grown by each `tally`: append and len are one step each, whatever thread they run in."""


def echo(value: object) -> object:
    """Give back what came."""
    return value


def spin(seconds: float) -> int:
    """Compute in Python for so many seconds of CPU time, without ever giving way by itself."""
    rounds = 0
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        for _ in range(500):
            rounds += 1
    return rounds


def tally() -> None:
    """Count one more."""
    _tallied.append(None)


def tallied() -> int:
    """How many were counted in this process."""
    return len(_tallied)


def length_of_floats(data: bytes) -> int:
    """The length of a float64 array that came as bytes, for peers that carry no arrays."""
    import numpy

    return int(numpy.frombuffer(data, dtype=numpy.float64).size)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "length": len,
    "length_of_floats": length_of_floats,
    "echo": echo,
    "spin": spin,
    "tally": tally,
    "tallied": tallied,
}

TARGETS = {
    "add": ("operator", "add"),
    "length": ("builtins", "len"),
    **{
        name: ("benchmarks.functions", name)
        for name in ("length_of_floats", "echo", "spin", "tally", "tallied")
    },
}
