"""A node: calls others and, if it listens, is called by them.

`Node` builds the parts from the settings, starts and stops them, and tells how it and its peers
do. How it calls is in `genrpc.calling`, how it is called in `genrpc.inbound`. Everything that
happens to streams happens on the loop thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from genrpc import discovery, security
from genrpc.authentication import CookieAuthenticator
from genrpc.calling import DEFAULT, HEAL_SECONDS, WAKE_SLACK_SECONDS, Caller
from genrpc.errors import BadRPC, BadTCP, error_of
from genrpc.executor import Executor
from genrpc.handlers import Handlers
from genrpc.inbound import Reception
from genrpc.names import (
    Destination,
    check_timeout,
    parse_destination,
)
from genrpc.peers import Steps, Surroundings
from genrpc.policy import Policy
from genrpc.protocol.session import Limits
from genrpc.settings import Settings
from genrpc.transport.channel import Line
from genrpc.transport.channelz import check_installed
from genrpc.transport.dialling import Resolver
from genrpc.transport.listening import CannotListenError, Listener
from genrpc.transport.loop import check_may_wait, loop_thread, tell_of_forks
from genrpc.transport.loopback import LoopbackStream
from genrpc.transport.pump import AnyStream
from genrpc.transport.stream import ServerStream
from genrpc.transport.tls import Certificates

if TYPE_CHECKING:
    from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
    from genrpc.unary_calls import Services

log = logging.getLogger("genrpc")

START_SECONDS = 30.0
EXIT_GRACE_SECONDS = 1.0
STOP_SLACK_SECONDS = 10.0
CLOSE_SECONDS = 1.0
"""How long the listener waits for its last answers to be read."""

MAX_GRACE_SECONDS = 1e6


class Node(Caller):
    """A node of this process: `name@host`, with settings of its own.

    Start it with `start()` or by `with Node(...)`; `stop()` ends it for good. Several nodes can
    live in one process.
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        super().__init__(name, settings)
        self.handlers = Handlers()
        self.started_at = 0.0
        self.is_stopped = False  # `stop` was called
        self.answers_itself = True  # else a call to its own name goes out to that address
        self._listener: Listener | None = None
        self._services: Services | None = None
        self._registration: discovery.Registration | None = None

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
        if settings.channelz:
            check_installed()
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
            max_age=settings.max_connection_age,
            # More than streams: one over max_connections is to hear why it is refused.
            max_connections=settings.max_connections + settings.max_pending_handshakes,
            channelz=settings.channelz,
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
            self.name, settings, authenticator, limits, self._executor, self.counters, thread
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
            self.is_stopped = True
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

    # ------------------------------------------------------------ what is known of it

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


def _longer(seconds: float | None) -> float:
    """How long the loop thread may take for what ends after `seconds` by itself."""
    return threading.TIMEOUT_MAX if seconds is None else seconds + WAKE_SLACK_SECONDS


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
