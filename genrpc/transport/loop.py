"""The process's loop thread for gRPC, started when the first node is.

It is one for the process because grpc.aio is: a second event loop makes its poller complain.
It lives until the process ends; with no node it sleeps. A process that was forked after it had
started cannot use it, nor gRPC at all, and is told so at once.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from genrpc.loops import LoopThread


class Forked(Protocol):
    """What must know when it finds itself in a forked child."""

    def forked(self) -> None:
        """Refuse all from now on; called in the child, before anything else runs there."""


_lock = threading.Lock()
_current: LoopThread | None = None
_forked = False
_told_of_forks: weakref.WeakSet[Forked] = weakref.WeakSet()


def _after_fork() -> None:
    global _forked
    _forked = True
    for told in list(_told_of_forks):
        told.forked()


def tell_of_forks(told: Forked) -> None:
    """Have `told.forked()` called in forked children, for as long as it lives."""
    _told_of_forks.add(told)


def loop_thread() -> LoopThread:
    """The loop thread, started at the first use; RuntimeError in a forked child."""
    global _current
    check_not_forked()
    if _current is None:
        with _lock:
            if _current is None:
                os.register_at_fork(after_in_child=_after_fork)
                _current = LoopThread("genrpc-loop", has_bell=True)
    return _current


def check_not_forked() -> None:
    """Raise RuntimeError if this process was forked from one in which genrpc ran."""
    if _forked:
        raise RuntimeError(
            "this process was forked from one in which genrpc was running, and gRPC does not"
            " survive a fork: start workers with the 'spawn' method of multiprocessing, or fork"
            " before the first use of genrpc"
        )


def check_may_wait() -> None:
    """Raise RuntimeError where waiting for a call would be for ever: on the loop thread."""
    if _forked or (_current is not None and threading.get_ident() == _current.ident):
        check_not_forked()
        raise RuntimeError(
            "a blocking genrpc function was called inside a function that was declared"
            " non-blocking: it would wait for itself for ever; take the declaration away"
        )
