"""Worker threads that are few while work is short, and many at once while it blocks.

One queue and at first one worker: on short calls a second thread only costs hand-overs of the
interpreter lock. While work waits, the loop thread looks at short intervals, and where nothing
ended for some looks, work is blocking and it starts more workers at once: a hundred functions
that sleep are all asleep after some milliseconds, and nested calls between nodes find a free
worker however deep they go. Surplus workers retire.

`put`, `look_soon` and `stop` are for the loop thread, `put_from_worker` for workers.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("genrpc")

RETIRE_SECONDS = 1.0
IDLE_LOOKS = 5
"""A worker that was not needed at this many looks, RETIRE_SECONDS apart, retires."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How a pool grows: looks so many seconds apart, from how many in vain on it does, and how
    many workers it starts at each of these.
    """

    look_seconds: float
    looks_in_vain: int
    steps: tuple[int, ...]


THREADS = Growth(0.001, 3, (2, 8, 32, 64))
"""Nothing ends in one millisecond, or two, also where both cores are busy: then a worker waits for
one, or for the interpreter lock, and further ones would only make it wait longer."""
PROCESSES = Growth(0.1, 1, (1, 2, 4, 8))
"""A process takes a tenth of a second to start; more than there are cores seldom help."""


class Worker:
    """What is known of one worker thread; it alone writes here.

    `process` is what it runs functions in, if not in itself.
    """

    __slots__ = ("idle", "process")

    def __init__(self) -> None:
        self.idle = True
        self.process: object = None


class WorkerPool(Generic[T]):
    """Threads that call `run(worker, work)` for each piece of work, and `leave(worker)` at the end.

    `run` must not raise.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[Worker, T], object],
        leave: Callable[[Worker], object],
        max_workers: int,
        growth: Growth,
    ) -> None:
        self._loop = loop
        self._run = run
        self._leave = leave
        self._max_workers = max_workers
        self._growth = growth
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._workers: set[Worker] = set()
        self._ended = 0  # pieces of work; a lost count now and then does no harm
        self._ended_seen = 0
        self._vain = 0  # looks, one after the other, between which nothing ended
        self._step = 0
        self._look: asyncio.TimerHandle | None = None
        self._retire: asyncio.TimerHandle | None = None
        self._idle: deque[int] = deque(maxlen=IDLE_LOOKS)
        self._stopped = False

    def put(self, work: T) -> None:
        """Have a worker do it; after `stop` too, for the last callbacks of keys."""
        self.put_all((work,))

    def put_all(self, works: Sequence[T]) -> None:
        """As `put`, for several."""
        if self._stopped:
            for work in works:
                threading.Thread(target=self._work_once, args=(work,), daemon=True).start()
            return
        put = self._queue.put
        for work in works:
            put(work)
        if not self._workers:
            self._start_worker()
        # Who is idle takes what lies there: a look would wake the loop once more for a lone call.
        # If it was at that moment no longer idle, it sees to it itself; see _work.
        if self._queue.qsize() > 1 or not any(worker.idle for worker in self.workers):
            self.look_soon()

    def put_from_worker(self, work: T) -> None:
        """Queue what the worker that calls this may itself take next."""
        self._queue.put(work)

    def look_soon(self) -> None:
        """See to it that what waits gets a worker."""
        if self._look is None and len(self._workers) < self._max_workers and not self._stopped:
            self._look = self._loop.call_later(self._growth.look_seconds, self._look_at_queue)

    def stop(self) -> None:
        """Let the workers go; what still runs on them is left alone."""
        self._stopped = True
        for timer in (self._look, self._retire):
            if timer is not None:
                timer.cancel()
        for _ in self.workers:  # not of the set itself, which those that go make smaller
            self._queue.put(None)

    @property
    def workers(self) -> list[Worker]:
        """Those that there are now."""
        return list(self._workers)

    @property
    def waiting(self) -> int:
        """How much work waits for a worker."""
        return self._queue.qsize()

    def _look_at_queue(self) -> None:
        self._look = None
        waiting = self._queue.qsize()
        if not waiting:
            self._step = self._vain = 0
            return
        self._vain = self._vain + 1 if self._ended == self._ended_seen else 0
        if self._vain >= self._growth.looks_in_vain:
            count = self._growth.steps[min(self._step, len(self._growth.steps) - 1)]
            self._step += 1
            for _ in range(min(count, waiting, self._max_workers - len(self._workers))):
                self._start_worker()
        elif not self._vain:
            self._step = 0
        self._ended_seen = self._ended
        self.look_soon()

    def _start_worker(self) -> None:
        worker = Worker()
        name = f"genrpc-worker-{len(self._workers) + 1}"
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        self._workers.add(worker)
        try:
            thread.start()
        except RuntimeError as exc:  # the system has no more; the next look tries again
            self._workers.discard(worker)
            log.warning("No further worker could be started: %s", exc)
            return
        if self._retire is None and len(self._workers) > 1 and not self._stopped:
            self._retire = self._loop.call_later(RETIRE_SECONDS, self._retire_surplus)

    def _retire_surplus(self) -> None:
        self._retire = None
        self._idle.append(sum(worker.idle for worker in self.workers))
        if len(self._idle) == IDLE_LOOKS:
            for _ in range(min(min(self._idle), len(self._workers) - 1)):
                self._queue.put(None)
            self._idle.clear()
        if len(self._workers) > 1:
            self._retire = self._loop.call_later(RETIRE_SECONDS, self._retire_surplus)

    def _work_once(self, work: T) -> None:
        worker = Worker()
        self._run(worker, work)
        self._leave(worker)

    def _work(self, worker: Worker) -> None:
        get, run = self._queue.get, self._run
        while True:
            worker.idle = True
            work = get()
            worker.idle = False
            if self._look is None and self._queue.qsize() and not self._stopped:
                self._loop.call_soon_threadsafe(self.look_soon)
            if work is None:
                break
            run(worker, work)
            self._ended += 1
        self._workers.discard(worker)
        self._leave(worker)
