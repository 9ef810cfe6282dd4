"""One stream per destination: dialled on demand, one dial at a time, and again after a loss.

A `Peer` is one destination as this node sees it. Other threads `post` calls to it; all else is
for the loop thread. A failed dial fails the calls that waited for it; the next call dials anew,
after a short pause when dials fail one after the other.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from genrpc import discovery
from genrpc.errors import BadTCP, CallError, error_of
from genrpc.loops import LoopThread, Mailbox
from genrpc.names import Destination, shard_key
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.events import (
    Answered,
    CallsEnded,
    CallsReturned,
    Closed,
    Drained,
    Event,
    Opened,
)
from genrpc.protocol.pending import Call
from genrpc.protocol.session import Authenticator, Failure, Limits, Phase
from genrpc.settings import Settings
from genrpc.telemetry import Audit, Counters
from genrpc.transport.channel import Line
from genrpc.transport.dialling import Resolver, open_stream, unknown_host
from genrpc.transport.pump import AnyStream, Pump
from genrpc.transport.tls import Certificates, ClientTls, check_server

log = logging.getLogger("genrpc")

BACK_OFF_SECONDS = 0.02
"""The pause before a dial that follows a failed one; it doubles with each further failure."""

MAX_BACK_OFF_SECONDS = 0.5

MAX_DIALS = 64
"""Streams that are dialled at once to one node, each for a key of its own; further ones wait. A
node refuses more than max_pending_handshakes_per_address, which is 128."""

MAX_CHECK_SECONDS = 60.0
"""How long a look at a TLS server may take where connect_timeout is None."""

Item = Call | tuple[Call, Destination] | Callable[[], object]
"""What is posted to a peer: a call, a call with a hint where to dial, something to do."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node lends to its peers."""

    node: str
    settings: Settings
    authenticator: Authenticator
    limits: Limits
    line: Line
    thread: LoopThread
    resolver: Resolver
    counters: Counters
    audit: Audit
    certificates: Certificates | None
    loop_back: Callable[[], AnyStream] | None
    _turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = field(
        default_factory=weakref.WeakValueDictionary
    )

    def turns_to(self, node: str) -> asyncio.Semaphore:
        """What lets so many at once dial a node; to be held on to by its peers."""
        return self._turns.setdefault(node, asyncio.Semaphore(MAX_DIALS))


@dataclass(slots=True)
class Steps:
    """How long the steps of a dial took, in seconds; None: it did not come to that.

    `connect` ends with the peer's first word, so it has TLS and one round trip in it.
    """

    address: str = ""
    resolve: float | None = None
    connect: float | None = None
    handshake: float | None = None


class Peer:
    """One destination: its stream, or the way to it."""

    def __init__(self, destination: Destination, around: Surroundings) -> None:
        self.destination = Destination(destination.node, destination.key)  # without hints
        self.steps = Steps()  # of the last dial
        self._around = around
        self._loop = around.thread.loop
        self._mailbox: Mailbox[Item] = Mailbox(self._loop, self._woken, around.thread.wake)
        self._pump: _ClientPump | None = None
        self.has_hung_up = False  # a stream has ended, and its memory may want collecting
        self._leaving: set[_ClientPump] = set()
        self._dial: asyncio.Task[object] | None = None
        self._idle_since: float | None = self._loop.time()
        self._failures = 0  # dials that failed one after the other
        self._failed_at = 0.0
        self._turns = around.turns_to(destination.node)
        self._stopped: Failure | None = None
        self._stopping: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = self._pump.session.phase.name if self._pump is not None else "no stream"
        return f"<Peer {self.destination.node} {state} {self.steps.address}>"

    # ------------------------------------------------------------ any thread

    @property
    def is_open(self) -> bool:
        """Whether the stream is there and calls go out on it."""
        pump = self._pump
        return pump is not None and pump.session.phase is Phase.READY

    def post(self, call: Call, hint: Destination | None = None) -> None:
        """Hand a call over; it will end exactly once."""
        self._mailbox.post(call if hint is None else (call, hint))

    def cancel(self, call: Call) -> None:
        """Give a call up that was handed over."""
        self._mailbox.post(functools.partial(self._cancel, call))

    def heal(self) -> None:
        """Look into the mailbox unasked: an interrupt may have eaten the wake-up."""
        if len(self._mailbox):
            self._woken()

    def idle_seconds(self, now: float) -> float:
        """For how long there has been no stream, nor a way to one."""
        return 0.0 if self._idle_since is None else now - self._idle_since

    # ------------------------------------------------------------ taking calls in

    def _woken(self) -> None:
        if self._pump is None:
            self._begin()
        else:
            self._pump.flush()

    def _begin(self) -> None:
        """Make a session for what waits, and dial for it."""
        items = self._mailbox.take()
        if self._stopped is not None:
            self._refuse(items, self._stopped)
        elif any(isinstance(item, (Call, tuple)) for item in items):
            self._begin_with(items)
            return
        else:  # something to do that needs no stream
            self.take_in(items, 0.0)
        self._mailbox.hand_over()

    def _begin_with(self, items: list[Item]) -> None:
        now = self._loop.time()
        hint = next((item[1] for item in items if isinstance(item, tuple)), None)
        pump = _ClientPump(self._loop, self._new_session(now), self, self._mailbox, hint)
        self._pump, self._idle_since = pump, None
        self.take_in(items, now)
        self._dial = self._around.thread.spawn(self._connect(pump, hint))
        pump.flush()

    def _refuse(self, items: list[Item], failure: Failure) -> None:
        """The node was stopped: what still comes fails."""
        for item in items:
            call = item[0] if isinstance(item, tuple) else item
            if isinstance(call, Call):
                call.fail(replace(failure, execution="not_started"))
                call.wake()

    def _new_session(self, now: float) -> ClientSession:
        around, settings = self._around, self._around.settings
        timeout = settings.connect_timeout
        return ClientSession(
            Route(around.node, self.destination.node, shard_key(self.destination.key)),
            around.authenticator,
            around.limits,
            connect_deadline=None if timeout is None else now + timeout,
            idle_timeout=settings.client_inactivity_timeout,
        )

    def take_in(self, items: Sequence[Item], now: float) -> None:
        """These came for the session that is there, in their order."""
        pump = self._pump
        for item in items:  # a call may be followed by its cancellation
            call = item[0] if isinstance(item, tuple) else item
            if isinstance(call, Call):
                assert pump is not None
                pump.session.submit(call, now)
            else:
                call()

    def _cancel(self, call: Call) -> None:
        for pump in self._pumps():
            pump.session.cancel(call)
            if pump is not self._pump:  # which is at work on its mailbox, this is part of it
                pump.flush()

    # ------------------------------------------------------------ dialling

    async def _connect(self, pump: _ClientPump, hint: Destination | None) -> None:
        try:
            await asyncio.sleep(self._pause())
            await pump.take_turn(self._turns)
            self.steps = Steps()
            begun = self._loop.time()
            stream = await self._open(hint or self.destination)
            self.steps.resolve = self._loop.time() - begun
        except CallError as exc:
            pump.close(exc.value)
        except Exception as exc:  # gRPC refuses an option or a certificate, say
            log.exception("Dialling %s failed", self.destination.node)
            pump.close(BadTCP("closed", "not_started", f"The dial failed: {exc!r}"))
        else:
            if pump.session.phase is Phase.CLOSED:
                stream.abort()
            else:
                pump.session.opened(self._loop.time())
                pump.attach(stream)
        if pump.session.phase is Phase.CLOSED:
            pump.end_turn()

    def _pause(self) -> float:
        """Seconds to wait before a dial: none, unless the last has failed just now."""
        if not self._failures:
            return 0.0
        pause = min(MAX_BACK_OFF_SECONDS, BACK_OFF_SECONDS * 2.0 ** min(self._failures - 1, 10))
        return max(0.0, self._failed_at + pause - self._loop.time())

    async def _open(self, destination: Destination) -> AnyStream:
        around = self._around
        if destination.node == around.node and around.loop_back is not None:
            return around.loop_back()
        find = functools.partial(discovery.find, destination, around.settings)
        quick = discovery.is_quick(destination, around.settings)
        host, port = find() if quick else await around.resolver.run(find)
        self.steps.address = f"{host}:{port}"
        try:
            addresses = await around.resolver.addresses(host)
        except OSError:
            raise error_of(unknown_host(host)) from None
        return open_stream(
            addresses,
            port,
            around.line,
            await self._check_server(addresses, port),
            self._loop,
            around.thread.spawn,
        )

    async def _check_server(self, addresses: list[str], port: int) -> ClientTls | None:
        """See that this peer is there, where TLS is used."""
        around = self._around
        if around.certificates is None:
            return None
        seconds = around.settings.connect_timeout
        deadline = self._loop.time() + (MAX_CHECK_SECONDS if seconds is None else seconds)
        node = self.destination.node
        return await around.resolver.run(
            functools.partial(check_server, around.certificates, node, addresses, port, deadline)
        )

    # ------------------------------------------------------------ what sessions tell

    def handle(self, pump: _ClientPump, event: Event) -> None:
        """Something happened on one of this peer's sessions."""
        if isinstance(event, CallsEnded):
            for call in event.calls:
                call.wake()
        elif isinstance(event, Opened):
            pump.end_turn()
            self._failures = 0
            self._note_steps(pump)
            self._around.counters.add("streams_opened")
            log.debug("Stream %s to %s is open", event.session_id, event.peer)
        elif isinstance(event, Answered):
            pump.answer_pings(event.seconds)
        elif isinstance(event, CallsReturned):
            # Before what came meanwhile: ordered casts must not overtake each other.
            hint = pump.hint
            returned = [call if hint is None else (call, hint) for call in event.calls]
            self._mailbox.put_back(returned)
            self._let_go(pump)
        elif isinstance(event, Drained):
            self._let_go(pump)
            pump.leave()
        elif isinstance(event, Closed):
            self._closed(pump, event)

    def _note_steps(self, pump: _ClientPump) -> None:
        """Keep how long the dial took, as far as it came."""
        session = pump.session
        if session.challenged_at is not None:
            self.steps.connect = session.challenged_at - session.opened_at
            if session.was_ready:
                self.steps.handshake = self._loop.time() - session.challenged_at

    def _let_go(self, pump: _ClientPump) -> None:
        """The pump drives on what it has; new calls dial anew."""
        if pump is self._pump:
            self._pump = None
            self._leaving.add(pump)
            pump.detach_mailbox()
            self._mailbox.hand_over()

    def _closed(self, pump: _ClientPump, event: Closed) -> None:
        self.has_hung_up = True
        self._leaving.discard(pump)
        pump.end_turn()
        pump.fail_pings(event.failure or BadTCP("closed"))
        session = pump.session
        if pump is self._pump:
            self._pump = None
            pump.detach_mailbox()
            if self._dial is not None:
                if self._dial is not asyncio.current_task(self._loop):
                    self._dial.cancel()
                self._dial = None
            if not session.was_ready and self._stopped is None:
                self._failures += 1
                self._failed_at = self._loop.time()
                self._note_steps(pump)
                self._tell_refusal(session, event.failure)
            elif event.failure is not None:
                log.info("The stream to %s ended: %s", self.destination.node, event.failure.reason)
                self._around.counters.add("streams_lost")
            self._mailbox.hand_over()
        if not self._pumps():
            self._idle_since = self._loop.time()
        self._look_stopped()

    def _tell_refusal(self, session: ClientSession, failure: Failure | None) -> None:
        """Tell if whoever answers there is not who it should be."""
        if failure is not None and (session.distrusts or failure.reason == "tls"):
            self._around.audit.refused_authentication(
                self.steps.address,
                str(failure.reason),
                identity=self.destination.node,
                detail=failure.message,
            )

    # ------------------------------------------------------------ looking and stopping

    async def ping(self, nonce: int) -> float:
        """Seconds of a round trip on the open stream, without the executor."""
        pump = self._pump
        if pump is None or pump.session.phase is not Phase.READY:
            raise error_of(BadTCP("closed"))
        return await pump.ping(nonce)

    async def stop(self, failure: Failure, grace: float) -> None:
        """Send what was cast, then end: all calls fail with `failure`."""
        self.heal()
        self._stopped = failure
        self._stopping = self._loop.create_future()
        for pump in self._pumps():
            pump.finish(failure)
            self._let_go(pump)  # from now on calls are refused
        self._look_stopped()
        if not self._stopping.done():
            await asyncio.wait([self._stopping], timeout=grace)
            for pump in self._pumps():
                pump.close(failure)

    def _pumps(self) -> list[_ClientPump]:
        return [pump for pump in (self._pump, *self._leaving) if pump is not None]

    def _look_stopped(self) -> None:
        stopping = self._stopping
        if stopping is not None and not stopping.done() and not self._pumps():
            stopping.set_result(None)


class _ClientPump(Pump[Item]):
    """A pump that tells its peer which of its pumps it is; `hint` is where it was dialled."""

    session: ClientSession

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session: ClientSession,
        peer: Peer,
        mailbox: Mailbox[Item],
        hint: Destination | None,
    ) -> None:
        super().__init__(loop, session, self, mailbox)
        self.hint = hint
        self._peer = peer
        self._turns: asyncio.Semaphore | None = None
        self._pings: list[asyncio.Future[float]] = []

    def finish(self, failure: Failure) -> None:
        """Take in what waits, fail all calls, and be drained when all casts are sent."""
        if self._mailbox is not None:
            self.take_in(self._mailbox.take(), self._loop.time())
        self.session.finish(failure)
        self.flush()
        self._settle()

    async def take_turn(self, turns: asyncio.Semaphore) -> None:
        """Wait until a dial may begin."""
        await turns.acquire()
        self._turns = turns

    def end_turn(self) -> None:
        """The dial has ended, well or badly: let the next begin."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()

    async def ping(self, nonce: int) -> float:
        """Seconds of a round trip; raises TransportError if the stream ends before the answer."""
        answered: asyncio.Future[float] = self._loop.create_future()
        self._pings.append(answered)
        self.session.ping(nonce, self._loop.time())
        self.flush()
        return await answered

    def answer_pings(self, seconds: float) -> None:
        """An answer came; one is as good as another."""
        for answered in self._pings:
            if not answered.done():  # else nobody waits any more
                answered.set_result(seconds)
        self._pings.clear()

    def fail_pings(self, failure: Failure) -> None:
        """No answer will come."""
        for answered in self._pings:
            if not answered.done():
                answered.set_exception(error_of(failure))
        self._pings.clear()

    def take_in(self, items: Sequence[Item], now: float) -> None:
        """As a peer does."""
        self._peer.take_in(items, now)

    def handle(self, event: Event) -> None:
        """As a peer does."""
        self._peer.handle(self, event)
