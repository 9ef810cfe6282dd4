"""Event loops in threads of their own, and how other threads hand them work.

`LoopThread` is a loop with its thread; `Mailbox` a queue that wakes its loop only when needed:
waking costs 9 to 14 microseconds, appending to a deque a tenth of one. So the loop is woken
when it has come to rest, and not while it is at work on earlier items or while a write is in
flight, after which it looks again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Generic, TypeVar

log = logging.getLogger("genrpc")

T = TypeVar("T")

_START_SECONDS = 30.0
_CANCEL_SECONDS = 1.0


class LoopThread:
    """An event loop in a daemon thread of its own.

    `run`, `call` and `stop` are for other threads, the rest for the loop's. Nothing that runs on
    the loop ends it but `stop`. With `has_bell`, `wake` is made quick; for one that lives as long
    as the process, since a bell is closed only when it is collected.
    """

    def __init__(self, name: str, *, has_bell: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._bell = _Bell() if has_bell and hasattr(os, "eventfd") else None
        if self._bell is not None:
            self.loop.add_reader(self._bell.descriptor, self._rung)
        self._due: Mailbox[Callable[[], object]] = Mailbox(self.loop, self._run_due, self._ring)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        started = threading.Event()
        self.loop.call_soon(started.set)
        self._thread.start()
        if not started.wait(_START_SECONDS):
            raise RuntimeError(f"the thread {name} did not start within {_START_SECONDS:g} s")
        self.ident = self._thread.ident

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these two out of a task of somebody's code; they end that task,
                # not the loop of all others.
                log.exception("A task of the loop %s raised", threading.current_thread().name)
        self._cancel_tasks()
        self.loop.close()

    def _cancel_tasks(self) -> None:
        """Let what still runs end, as asyncio.run does; what does not end is left."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_SECONDS))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Have `function(*args)` called on the loop thread, soon."""
        self.loop.call_soon_threadsafe(function, *args)

    def wake(self, function: Callable[[], object]) -> None:
        """As `call`, but cheaper: with one wake-up for all that comes before the loop is awake, and
        by an eventfd where there is one. It must return at once.

        A multicall wakes many peers at once.
        """
        self._due.post(function)

    def _ring(self, run_due: Callable[[], object]) -> None:
        if self._bell is None:
            self.loop.call_soon_threadsafe(run_due)
        else:
            self._bell.ring()

    def _rung(self) -> None:
        assert self._bell is not None
        self._bell.silence()
        self._run_due()

    def heal(self) -> None:
        """Look for what `wake` was given unasked: an interrupt may have eaten the wake-up."""
        if len(self._due):
            self._run_due()

    def _run_due(self) -> None:
        while True:
            for function in self._due.take():
                try:
                    function()
                except Exception as exc:  # it must not keep the others from being called
                    context = {"message": "A wake-up went wrong", "exception": exc}
                    self.loop.call_exception_handler(context)
            if self._due.rest():
                return

    def run(self, coroutine: Coroutine[object, object, T], timeout: float | None) -> T:
        """Run a coroutine on the loop and wait for its result, `timeout` seconds at most.

        Raises RuntimeError on the loop thread itself, where waiting would be for ever.
        """
        if threading.get_ident() == self.ident:
            coroutine.close()
            raise RuntimeError("this thread would wait for itself")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def spawn(self, coroutine: Coroutine[object, object, object]) -> asyncio.Task[object]:
        """Start a task that nobody needs to hold on to."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self, timeout: float = 0.0) -> None:
        """Stop the loop and cancel its tasks; waits `timeout` seconds at most for its thread."""
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)


class _Bell:
    """An eventfd that wakes a loop.

    asyncio's own way, a pair of sockets, which it reads until there is an error, makes four system
    calls of two: a call of the own node cost 15 to 20 % more. It is closed when nobody can ring
    any more, for then its number may become another's.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def __del__(self) -> None:
        os.close(self.descriptor)


def _nobody_looks() -> None:
    pass


class Mailbox(Generic[T]):
    """Many threads post, one loop thread takes; it calls `wake` when something has come.

    An interrupt (Ctrl-C) between the two steps of `post` leaves `awake` set with nobody on the
    way: whoever owns a mailbox looks into it now and then as well.
    """

    __slots__ = ("_loop", "_soon", "_wake", "awake", "items")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], object],
        soon: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        self.items: deque[T] = deque()
        self._loop = loop
        self._soon = soon or loop.call_soon_threadsafe
        self._wake: Callable[[], object] = wake
        self.awake = False

    def __len__(self) -> int:
        return len(self.items)

    def post(self, item: T) -> None:
        """Hand an item over; from any thread."""
        self.items.append(item)
        if not self.awake:
            self.awake = True
            self._soon(self._wake)

    def take(self) -> list[T]:
        """All items, in order; on the loop thread."""
        items = self.items
        popleft = items.popleft
        return [popleft() for _ in range(len(items))]

    def close(self) -> None:
        """Nothing is posted any more: let go of who looks into it."""
        self._wake = _nobody_looks

    def put_back(self, items: Sequence[T]) -> None:
        """Put items that were taken before all others again; on the loop thread."""
        self.items.extendleft(reversed(items))

    def hand_over(self) -> None:
        """Who looked into it does so no more: let `wake` see to what waits; on the loop thread."""
        if not self.rest():
            self._loop.call_soon(self._wake)

    def rest(self) -> bool:
        """Come to rest, so that the next item wakes the loop; False if one came meanwhile."""
        self.awake = False
        if self.items:
            self.awake = True
            return False
        return True
