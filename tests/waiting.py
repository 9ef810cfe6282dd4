"""Waiting for what another thread or process is about to bring about."""

import time
from collections.abc import Callable

SECONDS = 20.0
"""On a slow machine with much else to do; nothing that is right takes as long."""


def until(condition: Callable[[], object], seconds: float = SECONDS) -> object:
    """Wait until the condition holds, and give what it gave; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come about within {seconds} s"
        time.sleep(0.001)
    return found
