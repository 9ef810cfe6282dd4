"""A node: calls others and, if it listens, is called by them.

`Node` builds the parts from the settings, starts and stops them, and is what the doors call.
Its methods that take a call are for any thread; they encode the arguments in it, hand the call
to the destination's `Peer` and return or wait. Everything that happens to streams happens on
the loop thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from genrpc import codec, discovery, security
from genrpc.errors import BadRPC, BadTCP, error_of
from genrpc.executor import Executor, current
from genrpc.inbound import Reception
from genrpc.keys import Cast, Key, Together, loop_waiters, take
from genrpc.loops import LoopThread
from genrpc.names import (
    Destination,
    check_target,
    check_timeout,
    node_name,
    parse_destination,
)
from genrpc.peers import Peer, Steps, Surroundings
from genrpc.policy import Policy
from genrpc.protocol.pending import CALL, CAST, ORDERED_CAST, Call
from genrpc.protocol.session import Limits
from genrpc.settings import Settings
from genrpc.telemetry import Counters, Hooks, RateLimitedLog
from genrpc.transport.channel import Line
from genrpc.transport.dialling import Resolver
from genrpc.transport.listening import CannotListenError, Listener
from genrpc.transport.loop import check_may_wait, check_not_forked, loop_thread, tell_of_forks
from genrpc.transport.loopback import LoopbackStream
from genrpc.transport.pump import AnyStream
from genrpc.transport.stream import ServerStream
from genrpc.transport.tls import Certificates, certificate_fault

if TYPE_CHECKING:
    from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
    from genrpc.unary_calls import Services

log = logging.getLogger("genrpc")

HEAL_SECONDS = 0.25
"""How often the mailboxes are looked into unasked; see Mailbox."""

START_SECONDS = 30.0
EXIT_GRACE_SECONDS = 1.0
STOP_SLACK_SECONDS = 10.0
CLOSE_SECONDS = 1.0
"""How long the listener waits for its last answers to be read."""

MAX_GRACE_SECONDS = 1e6
WAKE_SLACK_SECONDS = 5.0
"""How much longer than its deadline a caller waits for the loop thread to end its call."""

FORGET_SECONDS = 60.0
"""After how long without a stream a destination is forgotten, of which there may be any number."""

MAX_ALIASES = 65_536
"""Spellings of destinations that are remembered with their peers."""


_CASTS = (CAST, ORDERED_CAST)


class _Default:
    """The type of DEFAULT, the mark of an argument that was left out."""

    def __repr__(self) -> str:
        return "default"


DEFAULT: Any = _Default()
"""Stands for the setting's value where a timeout was left out, since None means for ever."""


class Node:
    """A node of this process: `name@host`, with settings of its own.

    Start it with `start()` or by `with Node(...)`; `stop()` ends it for good. Several nodes can
    live in one process.
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = node_name(name)
        self.settings = settings if settings is not None else Settings()
        self.counters = Counters()
        self.hooks = Hooks()
        self.started_at = 0.0
        self.answers_itself = True  # else a call to its own name goes out to that address
        self._handlers: dict[str, object] = {}
        self._peers: dict[Destination, Peer] = {}
        self._aliases: dict[object, Peer] = {}
        self._peers_lock = threading.Lock()
        self._state = "new"
        self._thread: LoopThread | None = None
        self._listener: Listener | None = None
        self._services: Services | None = None
        self._registration: discovery.Registration | None = None
        self._heal: asyncio.TimerHandle | None = None
        self._cast_log = RateLimitedLog(log)
        self._told_of_cast = self._cast_failed  # bound once, not for each cast

    def __repr__(self) -> str:
        """Show the name, the port and the state."""
        return f"<Node {self.name} port {self.port} {self._state}>"

    # ------------------------------------------------------------ starting and stopping

    def start(self) -> Node:
        """Start: read the cookie, listen if the settings say so; then return the node itself.

        Raises ConfigurationError (UnsafeConfigurationError for what is not safe) and OSError
        if a port that was asked for cannot be had.
        """
        with self._peers_lock:
            if self._state != "new":
                raise RuntimeError(f"{self.name} was started already: a node is started once")
            self._state = "starting"
        try:
            self._build()
        except BaseException:  # it can be tried again: a port may become free
            self._state = "new"
            raise
        self.started_at = time.time()
        self._state = "started"
        tell_of_forks(self)
        # Else what was cast last could be lost with the process, and peers see a broken line.
        atexit.register(self.stop, EXIT_GRACE_SECONDS)
        return self

    def _build(self) -> None:
        settings = self.settings
        security.check_listen_address(settings)
        cookie = self._cookie = security.load_cookie(settings)
        # Settings sees to it that the three TLS files are set together.
        certificates = Certificates(settings, self.name) if settings.certfile is not None else None
        thread = self._thread = loop_thread()
        authenticator = self._authenticator = CookieAuthenticator(cookie.key)
        limits = _limits(settings)
        line = Line(
            settings.max_frame_bytes,
            settings.keepalive_interval,
            settings.keepalive_timeout,
            handshake_timeout=settings.handshake_timeout,
            inactivity_timeout=settings.connection_inactivity_timeout,
            # More than streams: one over max_connections is to hear why it is refused.
            max_connections=settings.max_connections + settings.max_pending_handshakes,
        )
        self._executor = Executor(
            thread.loop,
            self,
            Policy.of(settings),
            max_workers=settings.max_workers,
            nonblocking=frozenset(settings.nonblocking),
            tracebacks=settings.send_tracebacks,
            max_depth=settings.max_depth,
        )
        if settings.executor == "process" or "process" in settings.executor_per_module.values():
            self._executor.use_processes(self.name, settings)
        self._reception = Reception(
            self.name, settings, authenticator, limits, self._executor, self.counters, thread.loop
        )
        audit = self._reception.audit
        if security.is_open_to_others(settings):
            audit.insecure_override("insecure_listen", f"{settings.listen_address} without TLS")
        self._around = Surroundings(
            node=self.name,
            settings=settings,
            authenticator=authenticator,
            limits=limits,
            line=line,
            thread=thread,
            resolver=Resolver(thread.loop),
            counters=self.counters,
            audit=audit,
            certificates=certificates,
            loop_back=self._loop_back if self.answers_itself else None,
        )
        if settings.switch_interval is not None:
            sys.setswitchinterval(settings.switch_interval)
        thread.run(self._start(line), START_SECONDS)
        if self._listener is not None and settings.port_discovery == "local":
            try:
                self._registration = discovery.publish(
                    self.name, settings.listen_address, self._listener.port
                )
            except BaseException:
                thread.run(self._stop(0), STOP_SLACK_SECONDS)
                self._listener = None
                raise

    async def _start(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        settings = self.settings
        if settings.tcp_server_port is not None:
            host, port = settings.listen_address, settings.tcp_server_port
            listener = self._new_listener(line, loop)
            try:
                await listener.start(host, port)
            except CannotListenError:
                if settings.is_given("tcp_server_port"):
                    raise
                # Two nodes on one machine need no configuration: any free port will do.
                listener = self._new_listener(line, loop)
                await listener.start(host, 0)
            self._listener = listener
        self._heal = loop.call_later(HEAL_SECONDS, self._heal_peers)

    def _new_listener(self, line: Line, loop: asyncio.AbstractEventLoop) -> Listener:
        certificates = self._around.certificates
        credentials = certificates.server_credentials() if certificates is not None else None
        return Listener(line, self._accept, loop, credentials, self._offered().handlers)

    def _offered(self) -> Services:
        """What is offered besides the stream; on the loop thread."""
        if self._services is None:
            from genrpc.unary_calls import Services  # a node that only calls does without

            self._services = Services(self._reception, self._cookie)
        return self._services

    def _accept(self, stream: ServerStream, address: str) -> None:
        authenticator = self._authenticator.with_certificate_of(stream)
        self._reception.accept(stream, address, authenticator)

    def _loop_back(self) -> AnyStream:
        mine, other = LoopbackStream.pair(self._running_thread().loop)
        self._reception.accept(other, "this process")
        return mine

    def _heal_peers(self) -> None:
        loop = self._running_thread().loop
        now, unused = loop.time(), set()
        for peer in list(self._peers.values()):
            peer.heal()
            if peer.idle_seconds(now) > FORGET_SECONDS:
                unused.add(peer)
        if unused:
            self._forget(unused)
        self._heal = loop.call_later(HEAL_SECONDS, self._heal_peers)

    def _forget(self, unused: set[Peer]) -> None:
        """Let go of peers; a thread that still holds one can use it all the same."""
        with self._peers_lock:
            for peer in unused:
                del self._peers[peer.destination]
            self._aliases = {
                alias: peer for alias, peer in self._aliases.items() if peer not in unused
            }

    def forked(self) -> None:
        """This is a forked child, in which nothing of the node is left but its memory."""
        self._peers_lock = threading.Lock()  # another thread may have held it
        self._aliases = {}
        self._state = "forked"

    def stop(self, grace: float = 2.0) -> None:
        """Stop: refuse new calls, give running ones `grace` seconds, then end all streams.

        Calls that this node has out fail with BadTCP("closed"); what it cast is sent first.
        """
        seconds = check_timeout(grace, "grace")
        grace = MAX_GRACE_SECONDS if seconds is None else min(seconds, MAX_GRACE_SECONDS)
        with self._peers_lock:
            if self._state != "started":
                return
            self._state = "stopping"
        atexit.unregister(self.stop)
        if self._registration is not None:
            self._registration.withdraw()
        thread = self._running_thread()
        thread.run(self._stop(grace), 2 * grace + STOP_SLACK_SECONDS)

    async def _stop(self, grace: float) -> None:
        if self._heal is not None:
            self._heal.cancel()
        if self._services is not None:
            self._services.health.stop_serving()
        # The listener stays meanwhile: whoever comes is told that the node is draining.
        await self._reception.drain(grace)
        with self._peers_lock:  # until now, what runs here could call others
            self._state = "stopped"
            self._aliases = {}
        failure = BadTCP("closed", message=f"{self.name}, the calling node, was stopped.")
        peers = list(self._peers.values())
        await asyncio.gather(*(peer.stop(failure, max(0.5, grace)) for peer in peers))
        await self._reception.close()
        if self._listener is not None:
            await self._listener.stop(CLOSE_SECONDS)
        self._executor.stop()

    def __enter__(self) -> Node:
        """Start, unless it was started."""
        return self if self._state == "started" else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _running_thread(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError(f"{self.name} is not started: call its start() first")
        return self._thread

    # ------------------------------------------------------------ what is known of it

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._state in ("stopping", "stopped")

    @property
    def port(self) -> int | None:
        """The port that it listens on; None if it does not."""
        return self._listener.port if self._listener is not None else None

    def nodes(self) -> list[str]:
        """The peers with an open stream, sorted, each once, without this node."""
        found = {peer.destination.node for peer in list(self._peers.values()) if peer.is_open}
        return sorted(found - {self.name})

    def statistics(self) -> dict[str, int]:
        """Counters since the start, by name, and how busy the node is now."""
        numbers = self.counters.snapshot()
        if self._thread is not None:
            numbers.update(self._executor.statistics())
            numbers["streams_in"] = len(self._reception.streams)
            numbers["streams_out"] = sum(peer.is_open for peer in list(self._peers.values()))
        return numbers

    def change_policy(self, control: str, entries: Sequence[str]) -> None:
        """Let another policy hold from now on, on open streams too."""
        Policy(control, entries)  # a mistake is to be raised here
        self._running_thread().call(self._reception.change_policy, control, tuple(entries))

    # ------------------------------------------------------------ calling

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
            dest, module, function, args, kwargs, seconds, send_timeout, kind, False, by_value
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
        return take(call)

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
        encoded = encode(args, kwargs, snapshot=False)
        prepared = [
            self._prepare(
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
            dest, module, function, args, kwargs, None, send_timeout, kind, True
        )
        call.send_timeout = None  # a cast is held back as long as its peer wants
        assert isinstance(call, Cast)
        call.told = self._told_of_cast
        call.peer = peer
        peer.post(call, hint)

    def _cast_failed(self, call: Cast) -> None:
        self.counters.add("casts_failed")
        assert call.failure is not None
        node, reason = call.peer.destination.node, call.failure.reason
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
        encoded: tuple[bytes, list[Any]] | None = None,
    ) -> Key:
        """Call and return a key at once."""
        seconds = self._timeout(timeout)
        call, peer, hint = self._prepare(
            dest, module, function, args, kwargs, seconds, send_timeout, kind, True, encoded=encoded
        )
        key = Key(call, peer, self)
        if seconds == 0:
            call.fail(BadRPC("timeout", "not_started"))
            key.finish()
            return key
        call.wake = key.finish
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
            dest, module, function, args, kwargs, seconds, send_timeout, kind, True, by_value
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
        return take(call)

    def _timeout(self, timeout: float | None) -> float | None:
        if timeout is DEFAULT:
            return self.settings.receive_timeout
        return check_timeout(timeout)

    def _prepare(
        self,
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
        encoded: tuple[bytes, list[Any]] | None = None,
    ) -> tuple[Call, Peer, Destination | None]:
        """Check and encode everything; nothing was sent when this raises."""
        peer, hint = self._peer(dest)
        target = check_target(module, function)
        if encoded is None:
            encoded = encode(args, kwargs, snapshot=snapshot, by_value=by_value)
        if send_timeout is DEFAULT:
            send_timeout = self.settings.send_timeout
        else:
            send_timeout = check_timeout(send_timeout, "send_timeout")
        call = (Cast if kind in _CASTS else Call)(
            target,
            *encoded,
            kind=kind,
            deadline=None if seconds is None else time.monotonic() + seconds,
            send_timeout=send_timeout,
        )
        return call, peer, hint

    def _peer(self, dest: object) -> tuple[Peer, Destination | None]:
        try:
            peer = self._aliases.get(dest)
        except TypeError:  # unhashable; parse_destination says what is wrong with it
            peer = None
        if peer is not None:
            return peer, None
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

    # ------------------------------------------------------------ looking at a peer

    def ping(self, dest: object, timeout: float | None = DEFAULT) -> float:
        """Seconds of a round trip on the stream to a peer, which is opened first if need be."""
        seconds = self._timeout(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        self.call(dest, "genrpc", "ping", [], seconds)
        peer, _ = self._peer(dest)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._running_thread().run(peer.ping(time.monotonic_ns()), left)
        except concurrent.futures.TimeoutError:
            raise error_of(BadRPC("timeout", "finished")) from None

    def steps_to(self, dest: object) -> Steps:
        """How long the steps of the last dial to a peer took, also of one that failed."""
        return self._peer(dest)[0].steps

    def status_of(self, dest: object, timeout: float | None = DEFAULT) -> pb.GetStatusResponse:
        """Ask a node who it is and how it does; raises a CallError."""

        async def own() -> pb.GetStatusResponse:
            return self._offered().desk.status()

        destination, seconds = self._inquiry(dest, timeout)
        if destination.node == self.name:
            return self._running_thread().run(own(), START_SECONDS)
        from genrpc.inquiries import Inquiries  # few programs ask

        asked = Inquiries(self._around, self._cookie).status(destination, seconds)
        return self._running_thread().run(asked, _longer(seconds))

    def functions_of(
        self, dest: object, prefix: str = "", timeout: float | None = DEFAULT
    ) -> list[pb.FunctionInfo]:
        """Ask a node which functions may be called there, sorted; raises a CallError.

        `prefix` is compared with "module.function".
        """

        async def own() -> list[pb.FunctionInfo]:
            return await self._offered().desk.all_functions(prefix)

        destination, seconds = self._inquiry(dest, timeout)
        if destination.node == self.name:
            return self._running_thread().run(own(), _longer(seconds))
        from genrpc.inquiries import Inquiries  # as above

        asked = Inquiries(self._around, self._cookie).functions(destination, prefix, seconds)
        return self._running_thread().run(asked, _longer(seconds))

    def _inquiry(self, dest: object, timeout: float | None) -> tuple[Destination, float | None]:
        check_may_wait()
        destination, seconds = parse_destination(dest), self._timeout(timeout)
        if self._state != "started":
            raise RuntimeError(f"{self.name} does not run: start it, or another node")
        if seconds == 0:
            raise error_of(BadRPC("timeout", "not_started"))
        return destination, seconds

    # ------------------------------------------------------------ named handlers

    def register(self, name: str, handler: object) -> None:
        """Let `handler` (a callable, a queue.Queue or an asyncio.Queue) get messages for `name`."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"a handler is registered under a name (text), not {name!r}")
        self._handlers[name] = messenger(handler), handler

    def unregister(self, name: str) -> None:
        """Take a name back; one that is not registered is none the worse."""
        self._handlers.pop(name, None)

    def whereis(self, name: str) -> object:
        """The handler registered under a name, or None."""
        found = self._handlers.get(name)
        return found[1] if isinstance(found, tuple) else None

    def deliver(self, name: str, message: object) -> bool:
        """Hand a message to what is registered under `name`; False: nothing is."""
        found = self._handlers.get(name)
        if not isinstance(found, tuple):
            return False
        try:
            found[0](message)
        except Exception:  # the handler's own; the sender is not to suffer for it
            log.exception("The handler registered as %r raised", name)
        return True


def encode(
    args: Sequence[object],
    kwargs: Mapping[str, object] | None,
    *,
    snapshot: bool,
    by_value: frozenset[str] = frozenset(),
) -> tuple[bytes, list[Any]]:
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


def messenger(handler: object) -> Callable[[object], object]:
    """How a message is handed to a handler."""
    if callable(handler):
        return handler
    if isinstance(handler, asyncio.Queue):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise TypeError(
                "an asyncio.Queue must be registered from within its event loop, so that messages"
                " can be handed over to it"
            ) from None
        return lambda message: loop.call_soon_threadsafe(handler.put_nowait, message)
    put = getattr(handler, "put_nowait", None)
    if put is None:
        raise TypeError(
            f"a handler is a callable, a queue.Queue or an asyncio.Queue, not {handler!r:.100}"
        )
    return put  # type: ignore[no-any-return]  # of a queue


def running_node() -> Node | None:
    """The node for which the running code was called; None outside of any call."""
    running = current.get()
    return running.node if running is not None else None


def _longer(seconds: float | None) -> float:
    """How long the loop thread may take for what ends after `seconds` by itself."""
    return threading.TIMEOUT_MAX if seconds is None else seconds + WAKE_SLACK_SECONDS


class CookieAuthenticator:
    """The handshake by the cookie, as sessions want it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def with_certificate_of(self, stream: ServerStream) -> CookieAuthenticator:
        """The same for this stream alone: what its client showed must be of its node."""
        certificate = stream.certificate
        if certificate is None:
            return self
        return _CertifiedAuthenticator(self._key, certificate, stream)

    def new_nonce(self) -> bytes:
        """32 random bytes."""
        return security.new_nonce()

    def hello_fault(self, hello: Any, node: str) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a hello."""
        return security.hello_fault(hello, node)

    def challenge_fault(self, hello: Any, challenge: Any) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a challenge."""
        return security.challenge_fault(hello, challenge)

    def client_proof(self, hello: Any, challenge: Any) -> bytes:  # noqa: ANN401
        """The client's proof."""
        return security.client_proof(self._key, security.transcript(hello, challenge))

    def server_proof(self, hello: Any, challenge: Any) -> bytes:  # noqa: ANN401
        """The server's proof."""
        return security.server_proof(self._key, security.transcript(hello, challenge))

    def matches(self, expected: bytes, given: bytes) -> bool:
        """Compare in constant time."""
        return security.matches(expected, given)


class _CertifiedAuthenticator(CookieAuthenticator):
    """The handshake by the cookie, between two that have shown their certificates."""

    def __init__(self, key: bytes, certificate: bytes, stream: ServerStream) -> None:
        super().__init__(key)
        self._certificate = certificate
        self._stream = stream

    def hello_fault(self, hello: Any, node: str) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a hello: its node may not be that of the certificate."""
        fault = certificate_fault(self._certificate, hello.node)
        if fault is None:
            return super().hello_fault(hello, node)
        self._stream.refuse_certificate(fault)
        return "tls", fault


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_frame_bytes=settings.max_frame_bytes,
        max_message_bytes=settings.max_message_bytes,
        chunk_bytes=settings.chunk_bytes,
        window_bytes=settings.window_bytes,
        max_calls=settings.max_calls,
        cast_window=settings.cast_window,
        max_queued_casts=settings.max_queued_casts,
        max_queued_bytes=settings.max_queued_bytes,
        max_unread_reply_bytes=settings.max_unread_reply_bytes,
        max_transfer_bytes=settings.max_transfer_bytes,
    )
