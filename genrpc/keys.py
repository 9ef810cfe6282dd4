"""How a caller waits for its call: blocked, by a key, or in an event loop of its own.

The loop thread ends a call by calling its `wake`; what that is differs by the way of waiting.
The outcome is decoded by whoever takes it, never on the loop thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from genrpc import codec
from genrpc.errors import BadRPC, BadTCP, CallError, CodecError, Throw, error_of
from genrpc.loops import Mailbox
from genrpc.protocol.pending import ERROR, THROWN, VALUE, Call
from genrpc.settings import Settings
from genrpc.transport.loop import check_may_wait

# The states of concurrent.futures, whose functions look at them.
_PENDING = "PENDING"
_FINISHED = "FINISHED"
_CANCELLED = "CANCELLED_AND_NOTIFIED"

log = logging.getLogger("genrpc")

LOCK_SECONDS = 1.0

# One lock for all keys: what it guards takes less than making a lock would.
_creation = threading.Lock()  # of conditions
_ending = threading.Lock()  # of keys: by their call or by cancel(), and by which thread


class Peer(Protocol):
    """To whom a key's call was handed over."""

    def cancel(self, call: Call, /) -> None:
        """Give the call up."""


class Backstage(Protocol):
    """What a key needs of its node."""

    settings: Settings

    @property
    def unpickle(self) -> codec.Unpickle | None:
        """What decodes results under a whitelist; None: they may reach everything."""

    def call_back(self, function: Callable[[], object], /) -> None:
        """Have a worker call a function."""

    def call_later(self, seconds: float, function: Callable[[], object], /) -> None:
        """Have the loop thread call a function after a while."""


class Cast(Call):
    """A call that nobody waits for; `told` learns of its failure."""

    __slots__ = ("peer", "told")

    peer: Any  # to which it went
    told: Callable[[Cast], object]

    def wake(self) -> None:
        """It was lost."""
        self.told(self)


class PromisedCall(Call):
    """A call whose outcome a key holds."""

    # Its way to the key and back is a circle until it has ended: then nothing of it is left for
    # the garbage collector, which otherwise was a third of what ten thousand keys cost.
    __slots__ = ("key",)

    key: Key | None

    def wake(self) -> None:
        """It has ended."""
        key, self.key = self.key, None
        if key is not None:
            key.finish()


def take(call: Call, unpickle: codec.Unpickle | None) -> Any:  # noqa: ANN401  # whatever was returned
    """The value of a call that has ended; raises its CallError, or Throw.

    `unpickle` decides what a result may reach, as in `codec.decode_value`: whoever is called
    could otherwise do here what the node's whitelist forbids.
    """
    if call.failure is not None:
        raise error_of(call.failure)
    try:
        if call.outcome == ERROR:
            raise error_of(codec.decode_error(call.head, unpickle=unpickle))
        value = codec.decode_value(call.head, call.buffers, unpickle=unpickle)
    except CodecError as exc:
        message = f"The result arrived and cannot be decoded here: {exc}."
        raise error_of(BadRPC("bad_result", "finished", message)) from None
    if call.outcome == THROWN:
        raise Throw(value)
    return value


class Key(Future[Any]):
    """The promise of a call's outcome: a future of the raising door.

    `result()` returns the value or raises the CallError; `genrpc.yield_(key)` is its value form.
    Callbacks run on a worker thread of the node. A key costs little until somebody waits for
    it: the lock and the lists of a plain future are made only then.
    """

    # In slots, and no reference to a bound method: ten thousand keys at once are less work
    # for the garbage collector by half.
    __slots__ = ("_call", "_lazy_condition", "_node", "_outcome", "_peer", "_state", "is_received")

    def __init__(self, call: PromisedCall, peer: Peer, node: Backstage) -> None:  # not Future's
        self._call = call
        call.key = self
        self._peer = peer
        self._node = node
        self._state = _PENDING
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._lazy_condition: threading.Condition | None = None
        self.is_received = False  # its response was taken, or given up, in erpc's sense

    def __repr__(self) -> str:
        """Show the target and the state."""
        return f"<Key {':'.join(self._call.target[:2])} {self._state.lower()}>"

    # ------------------------------------------------------------ what Future's code uses

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # made when needed
        condition = self._lazy_condition
        if condition is None:
            with _creation:
                if self._lazy_condition is None:
                    self._waiters: list[Any] = []
                    self._done_callbacks: list[Callable[[Key], object]] = []
                    self._watchers: list[Callable[[Key], object]] = []
                    self._lazy_condition = threading.Condition()
                condition = self._lazy_condition
        return condition

    # ------------------------------------------------------------ the loop thread's side

    def finish(self) -> None:
        """The call has ended: what waits is woken."""
        with _ending:  # as _end does, by hand: it is half of what a key costs the loop thread
            if self._state != _PENDING:
                return
            self._state = _FINISHED
        if self._lazy_condition is not None:
            self._notify()
        expiry = self._node.settings.async_call_inactivity_timeout
        if expiry is not None:
            # Weakly: a key that was let go of needs no timer to let go of its result.
            self._node.call_later(expiry, functools.partial(_expire, weakref.ref(self)))

    def _end(self, state: str) -> bool:
        with _ending:
            if self._state != _PENDING:
                return False
            # Who makes the condition after this sees the state, and needs no notice; who
            # made it before is seen here.
            self._state = state
        if self._lazy_condition is not None:
            self._notify()
        return True

    def _notify(self) -> None:
        condition = self._condition
        if not condition.acquire(timeout=LOCK_SECONDS):
            # Ctrl-C can take the thread out of Condition's own code with the lock held. Then
            # this key is lost, and that is all: the loop thread must not wait for ever.
            log.error("The lock of %r was not released: nobody can be told of its outcome", self)
            return
        try:
            for waiter in self._waiters:
                if self._state == _CANCELLED:
                    waiter.add_cancelled(self)
                elif self._call.failure or self._call.outcome != VALUE:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
            callbacks = bool(self._done_callbacks)
            watchers, self._watchers = self._watchers, []
        finally:
            condition.release()
        for told in watchers:
            told(self)
        if callbacks:
            self._node.call_back(self._invoke_callbacks)  # type: ignore[attr-defined]  # Future's

    def expire(self) -> None:
        """Nobody took the outcome in time: it is let go."""
        with _ending:
            if self._outcome is not None:
                return
            failure = self._call.failure
            execution = "finished" if failure is None else failure.execution
            self._outcome = None, error_of(BadRPC("expired", execution))
        self._call.head, self._call.buffers = b"", ()

    # ------------------------------------------------------------ anybody's side

    def cancel(self) -> bool:
        """Give the call up; False if it has its outcome already. The peer is told."""
        if not self._end(_CANCELLED):
            return self._state == _CANCELLED
        self._peer.cancel(self._call)
        return True

    def done(self) -> bool:
        """Whether there is an outcome."""
        return self._state != _PENDING

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state == _CANCELLED

    def running(self) -> bool:
        """Whether it may be running: there is no outcome yet."""
        return self._state == _PENDING

    def when_done(self, told: Callable[[Key], object]) -> None:
        """Have `told(key)` called when there is an outcome, in the order in which outcomes come.

        It runs on the loop thread and must return at once; users want add_done_callback.
        """
        with self._condition:
            if self._state == _PENDING:
                self._watchers.append(told)
                return
        told(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the outcome, `timeout` seconds at most; whether there is one."""
        if self._state == _PENDING:
            if timeout != 0:
                check_may_wait()
            with self._condition:
                return self._condition.wait_for(lambda: self._state != _PENDING, timeout)
        return True

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """The value of the call; raises its CallError, or Throw.

        No outcome within `timeout` seconds: concurrent.futures.TimeoutError, and nothing is lost.
        """
        value, error = self._outcome_within(timeout)
        if error is not None:
            raise error
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The CallError, or Throw, that `result` would raise, or None."""
        return self._outcome_within(timeout)[1]

    def _outcome_within(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        if self._state == _PENDING and not self.wait(timeout):
            raise concurrent.futures.TimeoutError(
                f"no outcome of {self!r} within {timeout} s; it can still be waited for"
            )
        if self._state == _CANCELLED:
            raise CancelledError
        found = self._outcome
        if found is None:
            call = self._call
            found = self._decoded()
            with _ending:  # in several threads at once, the first decides
                if self._outcome is None:
                    self._outcome = found
                found = self._outcome
            call.head, call.buffers = b"", ()  # let go of
        error = found[1]
        if error is None:
            return found
        # A fresh exception each time: one that is raised in several threads at once would
        # grow the tracebacks of all.
        if isinstance(error, CallError):
            return None, error_of(error.value)
        if isinstance(error, Throw):
            return None, Throw(error.value)
        return found

    def _decoded(self) -> tuple[Any, BaseException | None]:
        try:
            return take(self._call, self._node.unpickle), None
        except (CallError, Throw, CancelledError) as exc:
            return None, exc


def _expire(reference: weakref.ref[Key]) -> None:
    key = reference()
    if key is not None:
        key.expire()


def value_of(error: BaseException) -> BadRPC | BadTCP:
    """The value that the module-level door gives instead of raising `error`."""
    if isinstance(error, CallError):
        return error.value
    return BadRPC("cancelled")


class Together:
    """Several calls for which one thread waits; `one_ended` is for the loop thread alone."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = threading.Lock()
        if count:
            self._done.acquire()

    def one_ended(self) -> None:
        """One of the calls has ended."""
        self._left -= 1
        if not self._left:
            self._done.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait until all have, `timeout` seconds at most; whether they have."""
        return self._done.acquire(
            timeout=-1.0 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        )


class LoopWaiters:
    """Wakes the tasks of one event loop whose calls have ended, all that have at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._mailbox: Mailbox[asyncio.Future[None]] = Mailbox(loop, self._wake)

    def wake(self, future: asyncio.Future[None]) -> None:
        """End a future of the loop, from the loop thread of gRPC."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._mailbox.post(future)

    def _wake(self) -> None:
        while True:
            for future in self._mailbox.take():
                if not future.done():  # else its task was cancelled
                    future.set_result(None)
            if self._mailbox.rest():
                return


_loops: dict[asyncio.AbstractEventLoop, LoopWaiters] = {}


def loop_waiters(loop: asyncio.AbstractEventLoop) -> LoopWaiters:
    """The waiters of an event loop; to be called on it."""
    found = _loops.get(loop)
    if found is None:
        for other in list(_loops):  # each asyncio.run makes a loop
            if other.is_closed():
                _loops.pop(other, None)
        found = _loops[loop] = LoopWaiters(loop)
    return found
