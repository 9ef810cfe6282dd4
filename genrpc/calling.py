"""The half of a node that calls: destinations, and the ways to wait for a call.

Each way checks and encodes the arguments in the caller's thread, hands the call to the
destination's `Peer` and returns or waits. Any thread may call it, but for the loop thread; what
has to do with streams happens there.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from genrpc import codec
from genrpc.errors import BadRPC, error_of
from genrpc.executor import Executor
from genrpc.keys import Cast, Key, PromisedCall, Together, loop_waiters, take
from genrpc.loops import LoopThread
from genrpc.names import Destination, check_target, check_timeout, node_name, parse_destination
from genrpc.peers import Peer, Surroundings
from genrpc.protocol.pending import CALL, PICKLE, Call
from genrpc.settings import Settings
from genrpc.telemetry import Counters, RateLimitedLog
from genrpc.transport.loop import check_may_wait, check_not_forked

log = logging.getLogger("genrpc")

HEAL_SECONDS = 0.25
"""How often the mailboxes are looked into unasked; see Mailbox."""

WAKE_SLACK_SECONDS = 5.0
"""How much longer than its deadline a caller waits for the loop thread to end its call."""

FORGET_SECONDS = 60.0
"""After how long without a stream a destination is forgotten, of which there may be any number."""

COLLECT_SECONDS = 2.0
"""How far apart the garbage collector is asked to look for streams that have ended.

gRPC closes a connection when nobody refers to its call any more, and its calls may refer to
themselves: always from Python 3.12 on, and on a busy machine before. Nobody else may come by.
"""

MAX_ALIASES = 65_536
"""Spellings of destinations that are remembered with their peers."""

# The limits that a cast may meet on its way out; its failure names the one.
_QUEUES = ("max_queued_casts", "max_queued_bytes")

Encoded = tuple[bytes, Sequence[Any]]

Made = TypeVar("Made", bound=Call)


class _Default:
    """The type of DEFAULT, the mark of an argument that was left out."""

    def __repr__(self) -> str:
        return "default"


DEFAULT: Any = _Default()
"""Stands for the setting's value where a timeout was left out, since None means for ever."""


class Caller:
    """What calls other nodes, and itself, under the name of a node.

    Who derives from it sets `_around`, `_executor` and `_thread` when it starts, and `_state`.
    """

    _around: Surroundings
    _executor: Executor

    def __init__(self, name: str, settings: Settings | None) -> None:
        self.name = node_name(name)
        self.settings = settings if settings is not None else Settings()
        self.counters = Counters()
        self._state = "new"
        self._thread: LoopThread | None = None
        self._peers: dict[Destination, Peer] = {}
        self._aliases: dict[object, Peer] = {}
        self._peers_lock = threading.Lock()
        self._heal: asyncio.TimerHandle | None = None
        self._hung_up = False
        self._collected_at = 0.0
        self._cast_log = RateLimitedLog(log)
        self._told_of_cast = self._cast_failed  # bound once, not for each cast

    @property
    def unpickle(self) -> codec.Unpickle | None:
        """What decodes results under a whitelist; None: they may reach everything."""
        return self._executor.unpickle

    def _running_thread(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError(f"{self.name} is not started: call its start() first")
        return self._thread

    def _heal_peers(self) -> None:
        thread = self._running_thread()
        thread.heal()
        loop = thread.loop
        now, unused = loop.time(), set()
        for peer in list(self._peers.values()):
            peer.heal()
            if peer.idle_seconds(now) > FORGET_SECONDS:
                unused.add(peer)
            if peer.has_hung_up:
                peer.has_hung_up, self._hung_up = False, True
        if unused:
            self._forget(unused)
        if self._hung_up and now - self._collected_at > COLLECT_SECONDS:
            self._hung_up, self._collected_at = False, now
            gc.collect()
        self._heal = loop.call_later(HEAL_SECONDS, self._heal_peers)

    def _forget(self, unused: set[Peer]) -> None:
        """Let go of peers; a thread that still holds one can use it all the same."""
        with self._peers_lock:
            for peer in unused:
                del self._peers[peer.destination]
            self._aliases = {
                alias: peer for alias, peer in self._aliases.items() if peer not in unused
            }

    def call(
        self,
        dest: object,
        module: object,
        function: object,
        args: Sequence[object] = (),
        timeout: float | None = DEFAULT,
        *,
        kwargs: Mapping[str, object] | None = None,
        send_timeout: float | None = DEFAULT,
        kind: Any = CALL,  # noqa: ANN401  # a protobuf enum
        by_value: frozenset[str] = frozenset(),
    ) -> Any:  # noqa: ANN401  # whatever the function returns
        """Call and wait; returns the value, raises its CallError, or Throw."""
        check_may_wait()
        done = threading.Lock()
        done.acquire()
        seconds = self._timeout(timeout)
        call, peer, hint = self._prepare(
            Call, dest, module, function, args, kwargs, seconds, send_timeout, kind, False, by_value
        )
        if seconds == 0:
            raise error_of(BadRPC("timeout", "not_started"))
        call.wake = done.release
        peer.post(call, hint)
        try:
            limit = (
                -1.0
                if seconds is None
                else min(seconds + WAKE_SLACK_SECONDS, threading.TIMEOUT_MAX)
            )
            if not done.acquire(timeout=limit):
                raise RuntimeError("genrpc's loop thread does not answer any more")
        except BaseException:  # Ctrl-C, mostly: nobody waits for this call any more
            peer.cancel(call)
            raise
        return take(call, self._executor.unpickle)

    def call_all(
        self,
        dests: Sequence[object],
        module: object,
        function: object,
        args: Sequence[object] = (),
        timeout: float | None = DEFAULT,
        *,
        kwargs: Mapping[str, object] | None = None,
        send_timeout: float | None = DEFAULT,
    ) -> list[Call]:
        """Call several nodes at once and wait until all calls have ended; `take` each.

        The arguments are encoded once, and the waiting thread is woken once.
        """
        check_may_wait()
        seconds = self._timeout(timeout)
        encoded = encode(args, kwargs, False)
        prepared = [
            self._prepare(
                Call,
                dest,
                module,
                function,
                (),
                None,
                seconds,
                send_timeout,
                CALL,
                False,
                encoded=encoded,
            )
            for dest in dests
        ]
        together = Together(len(prepared))
        for call, peer, hint in prepared:
            if seconds == 0:
                call.fail(BadRPC("timeout", "not_started"))
                together.one_ended()
            else:
                call.wake = together.one_ended
                peer.post(call, hint)
        try:
            limit = None if seconds is None else seconds + WAKE_SLACK_SECONDS
            if not together.wait(limit):
                raise RuntimeError("genrpc's loop thread does not answer any more")
        except BaseException:  # Ctrl-C, mostly: nobody waits for these calls any more
            for call, peer, _ in prepared:
                peer.cancel(call)
            raise
        return [call for call, _, _ in prepared]

    def send(
        self,
        dest: object,
        module: object,
        function: object,
        args: Sequence[object] = (),
        *,
        kwargs: Mapping[str, object] | None = None,
        send_timeout: float | None = DEFAULT,
        kind: Any,  # noqa: ANN401  # a protobuf enum
    ) -> None:
        """Cast: hand over and forget; a failure is logged and counted."""
        call, peer, hint = self._prepare(
            Cast, dest, module, function, args, kwargs, None, send_timeout, kind, True
        )
        call.send_timeout = None  # a cast is held back as long as its peer wants
        call.told = self._told_of_cast
        call.peer = peer
        peer.post(call, hint)

    def _cast_failed(self, call: Cast) -> None:
        self.counters.add("casts_failed")
        assert call.failure is not None
        node, reason = call.peer.destination.node, call.failure.reason
        for limit in _QUEUES:
            if f"({limit}, " in call.failure.message:
                self._around.audit.limit_hit(
                    call.peer.steps.address, limit, identity=node, target=":".join(call.target[:2])
                )
        self._cast_log.warning(
            (node, reason),
            "A cast of %s:%s to %s was lost: %s",
            *call.target[:2],
            node,
            call.failure.message or reason,
        )

    def promise(
        self,
        dest: object,
        module: object,
        function: object,
        args: Sequence[object] = (),
        timeout: float | None = None,
        *,
        kwargs: Mapping[str, object] | None = None,
        send_timeout: float | None = DEFAULT,
        kind: Any = CALL,  # noqa: ANN401  # a protobuf enum
        encoded: Encoded | None = None,
    ) -> Key:
        """Call and return a key at once."""
        seconds = self._timeout(timeout)
        call, peer, hint = self._prepare(
            PromisedCall,
            dest,
            module,
            function,
            args,
            kwargs,
            seconds,
            send_timeout,
            kind,
            True,
            encoded=encoded,
        )
        key = Key(call, peer, self)
        if seconds == 0:
            call.fail(BadRPC("timeout", "not_started"))
            call.wake()
        else:
            peer.post(call, hint)
        return key

    def call_back(self, function: Callable[[], object]) -> None:
        """Have a worker call a function: what users attach to keys."""
        self._running_thread().call(self._executor.put, function)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Have the loop thread call a function after a while."""
        thread = self._running_thread()
        thread.call(thread.loop.call_later, seconds, function)

    async def call_soon(
        self,
        dest: object,
        module: object,
        function: object,
        args: Sequence[object] = (),
        timeout: float | None = DEFAULT,
        *,
        kwargs: Mapping[str, object] | None = None,
        send_timeout: float | None = DEFAULT,
        kind: Any = CALL,  # noqa: ANN401  # a protobuf enum
        by_value: frozenset[str] = frozenset(),
    ) -> Any:  # noqa: ANN401  # whatever the function returns
        """Call and await the value; cancelling the task cancels the call."""
        seconds = self._timeout(timeout)
        call, peer, hint = self._prepare(
            Call, dest, module, function, args, kwargs, seconds, send_timeout, kind, True, by_value
        )
        if seconds == 0:
            raise error_of(BadRPC("timeout", "not_started"))
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        call.wake = functools.partial(loop_waiters(loop).wake, done)
        peer.post(call, hint)
        try:
            await done
        except BaseException:  # CancelledError, mostly: nobody waits for this call any more
            peer.cancel(call)
            raise
        return take(call, self._executor.unpickle)

    def _timeout(self, timeout: float | None) -> float | None:
        if timeout is DEFAULT:
            return self.settings.receive_timeout
        return check_timeout(timeout)

    def _prepare(
        self,
        make: type[Made],
        dest: object,
        module: object,
        function: object,
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        seconds: float | None,
        send_timeout: float | None,
        kind: Any,  # noqa: ANN401  # a protobuf enum
        snapshot: bool,
        by_value: frozenset[str] = frozenset(),
        encoded: Encoded | None = None,
    ) -> tuple[Made, Peer, Destination | None]:
        """Check and encode everything; nothing was sent when this raises."""
        hint = None
        try:
            peer = self._aliases[dest]
        except (KeyError, TypeError):  # new, or unhashable
            peer, hint = self._peer(dest)
        target = check_target(module, function)
        if encoded is None:
            encoded = encode(args, kwargs, snapshot, by_value)
        if send_timeout is DEFAULT:
            send_timeout = self.settings.send_timeout
        else:
            send_timeout = check_timeout(send_timeout, "send_timeout")
        deadline = None if seconds is None else time.monotonic() + seconds
        head, buffers = encoded
        return make(target, head, buffers, kind, PICKLE, deadline, send_timeout), peer, hint

    def _peer(self, dest: object) -> tuple[Peer, Destination | None]:
        check_not_forked()
        destination = parse_destination(dest)
        hinted = destination.port_hint is not None or destination.host_hint is not None
        with self._peers_lock:
            if self._state not in ("started", "stopping"):
                raise RuntimeError(
                    f"{self.name} is stopped: start another node"
                    if self._state == "stopped"
                    else f"{self.name} is not started: call its start() first"
                )
            peer = self._peers.get(destination)
            if peer is None:
                peer = self._peers[destination] = Peer(destination, self._around)
            if not hinted:  # a hint goes with each of its calls
                if len(self._aliases) >= MAX_ALIASES:
                    self._aliases.clear()
                self._aliases[dest] = peer
        return peer, destination if hinted else None


def encode(
    args: Sequence[object],
    kwargs: Mapping[str, object] | None,
    snapshot: bool,
    by_value: frozenset[str] = frozenset(),
) -> Encoded:
    """Check that arguments are arguments, and encode them."""
    if type(args) is not list and type(args) is not tuple and not _is_sequence(args):
        raise TypeError(f"args is a list or tuple of arguments, not {type(args).__name__}")
    if kwargs is not None and not (
        isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)
    ):
        raise TypeError(f"kwargs is a mapping of names to arguments, not {kwargs!r:.100}")
    return codec.encode_arguments(args, kwargs, snapshot=snapshot, by_value=by_value)


def _is_sequence(args: object) -> bool:
    return isinstance(args, Sequence) and not isinstance(args, (str, bytes, bytearray))
