"""The calls that come in: who may have what run, and how many at once.

`Reception` is a node's: it decides for each call that arrives whether it runs, by the policy,
by the number of calls that the peer has already, and by whether the node is stopping. An
`InboundStream` drives one accepted stream. All of it is for the loop thread, except that
executors post replies to a stream's mailbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from genrpc import codec
from genrpc.executor import Executor, unauthorized
from genrpc.loops import Mailbox
from genrpc.protocol.events import (
    CallsArrived,
    CallsCancelled,
    Closed,
    Drained,
    Event,
    Opened,
    TransferRefused,
)
from genrpc.protocol.pending import (
    BLOCK_CALL,
    CALL,
    ERROR,
    ORDERED_CAST,
    PICKLE,
    IncomingCall,
    Target,
)
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Authenticator, Limits
from genrpc.settings import Settings
from genrpc.telemetry import Counters, RateLimitedLog
from genrpc.transport.pump import AnyStream, Pump

log = logging.getLogger("genrpc")

MAX_REMEMBERED_VERDICTS = 4096

NO_PICKLE = codec.encode_error(
    "bad_arguments",
    "not_started",
    "This stream did not ask for pickles in its hello: send the number of another encoding.",
)

CLOSE_SECONDS = 1.0
"""How long callers may take to close their streams when the node stops."""

if TYPE_CHECKING:
    from genrpc.protocol.pending import Buffer, Outcome

    Reply = tuple[IncomingCall, Outcome, bytes, Sequence[Buffer]]


class Reception:
    """What a node's inbound streams share."""

    def __init__(
        self,
        node: str,
        settings: Settings,
        authenticator: Authenticator,
        limits: Limits,
        executor: Executor,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.node = node
        self.instance_id = secrets.token_hex(8)
        self.settings = settings
        self.authenticator = authenticator
        self.limits = limits
        self.executor = executor
        self.counters = counters
        self.loop = loop
        self.log = RateLimitedLog(log)
        self.streams: set[InboundStream] = set()
        self.calls_of: Counter[str] = Counter()  # running and queued, by peer
        self.running = 0  # the same for all peers, casts included
        self.handshakes = 0  # streams whose peer has not proved itself yet
        self.handshakes_of: Counter[str] = Counter()  # the same, by address
        self.draining = False
        self._verdicts: dict[Target, bytes | None] = {}
        self._ended: asyncio.Event | None = None  # set when a call or a stream has

    def accept(
        self, stream: AnyStream, address: str, authenticator: Authenticator | None = None
    ) -> None:
        """Serve a stream that was accepted."""
        inbound = InboundStream(self, address, authenticator or self.authenticator)
        self.streams.add(inbound)
        self.handshakes += 1
        self.handshakes_of[inbound.host] += 1
        if self.draining:
            inbound.session.refuse("draining", "This node is stopping and takes no new streams.")
        elif len(self.streams) > self.settings.max_connections:
            inbound.session.refuse("overload", "This node has max_connections streams already.")
        elif self.handshakes > self.settings.max_pending_handshakes:
            inbound.session.refuse("overload", "Too many handshakes are under way on this node.")
        elif self.handshakes_of[inbound.host] > self.settings.max_pending_handshakes_per_address:
            inbound.session.refuse("overload", "Too many of your handshakes are under way here.")
        inbound.pump.attach(stream)

    def change_policy(self, control: str, entries: Sequence[str]) -> None:
        """Let another policy decide from now on, on open streams too."""
        self.executor.change_policy(control, entries)
        self._verdicts.clear()

    def refusal(self, call: IncomingCall, peer: str) -> bytes | None:
        """Why a call is not run, as an encoded error; None: it is, and counts from now on."""
        target = call.target
        try:
            verdict = self._verdicts[target]
        except KeyError:
            verdict = self._screen(target)
        if verdict is not None:
            self.log.warning(
                (peer, target),
                "Refused: %s asked for %s:%s, which the policy forbids",
                peer,
                *target[:2],
            )
            self.counters.add("refused_unauthorized")
            return verdict
        if self.draining:
            self.counters.add("refused_draining")
            return codec.encode_error("draining", "not_started", f"{self.node} is stopping.")
        if not call.is_cast:
            if self.calls_of[peer] >= self.settings.max_calls:
                self.counters.add("refused_overload")
                message = (
                    f"{self.node} has {self.settings.max_calls} calls of {peer} already"
                    " (max_calls): call again later."
                )
                return codec.encode_error("overload", "not_started", message)
            self.calls_of[peer] += 1
        self.running += 1
        return None

    def _screen(self, target: Target) -> bytes | None:
        if len(self._verdicts) >= MAX_REMEMBERED_VERDICTS:
            self._verdicts.clear()
        allowed = self.executor.policy.screen(target[0], target[1])
        verdict = None if allowed else unauthorized(target[0], target[1])
        self._verdicts[target] = verdict
        return verdict

    def ended(self, call: IncomingCall, peer: str) -> None:
        """A call that counted has ended."""
        if not call.is_cast:
            left = self.calls_of[peer] - 1
            if left > 0:
                self.calls_of[peer] = left
            else:
                del self.calls_of[peer]
        self.running -= 1
        self.counters.add("calls_served")
        if self._ended is not None:
            self._ended.set()

    def shaken(self, inbound: InboundStream) -> None:
        """A handshake has ended, well or badly."""
        self.handshakes -= 1
        left = self.handshakes_of[inbound.host] - 1
        if left:
            self.handshakes_of[inbound.host] = left
        else:
            del self.handshakes_of[inbound.host]

    def left(self, inbound: InboundStream) -> None:
        """A stream is over."""
        self.streams.discard(inbound)
        if self._ended is not None:
            self._ended.set()

    async def drain(self, grace: float) -> None:
        """Take nothing more; give what runs `grace` seconds to end."""
        self.draining = True
        await self._until(lambda: not self.running, grace)
        if self.running:
            log.warning("%s stopped while %d calls were running", self.node, self.running)

    async def close(self) -> None:
        """End all streams: the callers may read their last replies, and then close them."""
        for inbound in list(self.streams):
            inbound.leave()
        # One with a call that still runs will not be closed by its caller.
        await self._until(
            lambda: all(inbound.session.running for inbound in self.streams), CLOSE_SECONDS
        )
        for inbound in list(self.streams):
            inbound.pump.close(None)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until the condition holds, `seconds` at most; looks when something has ended."""
        self._ended = asyncio.Event()
        deadline = self.loop.time() + seconds
        while not condition() and (left := deadline - self.loop.time()) > 0:
            self._ended.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), left)


class InboundStream:
    """One accepted stream."""

    def __init__(self, reception: Reception, address: str, authenticator: Authenticator) -> None:
        settings = reception.settings
        self.address = address
        self.host = address.rpartition(":")[0]
        self._reception = reception
        session_id = secrets.token_hex(6)
        handshake = settings.handshake_timeout
        self.session = ServerSession(
            Identity(reception.node, reception.instance_id, session_id),
            authenticator,
            reception.limits,
            handshake_deadline=None if handshake is None else reception.loop.time() + handshake,
            idle_timeout=settings.server_inactivity_timeout,
            max_age=settings.max_connection_age,
        )
        self._is_proved = False
        self.mailbox: Mailbox[Reply] = Mailbox(reception.loop, self._woken)
        self.pump: Pump[Reply] = Pump(reception.loop, self.session, self, self.mailbox)

    def _woken(self) -> None:
        if not self.pump.over:
            self.pump.flush()
            return
        while True:  # the stream is gone, and its calls still end, one by one
            for reply in self.mailbox.take():
                self.take_in(reply, 0.0)
            if self.mailbox.rest():
                return

    def take_in(self, item: Reply, now: float) -> None:
        """A call has ended."""
        call, outcome, head, buffers = item
        self.session.reply(call, outcome, head, buffers)
        self._reception.ended(call, self.session.peer)

    def handle(self, event: Event) -> None:
        """Something happened on the stream."""
        if isinstance(event, CallsArrived):
            for call in event.calls:
                self._admit(call)
        elif isinstance(event, CallsCancelled):
            for call in event.calls:
                self._reception.executor.cancel(call)
        elif isinstance(event, TransferRefused):
            error = codec.encode_error(event.reason, "not_started", event.message)
            self.session.reply(event.call, ERROR, error)
        elif isinstance(event, Opened):
            self._is_proved = True
            self._reception.shaken(self)
            self._reception.counters.add("streams_accepted")
            log.debug("Stream %s of %s (%s) is open", event.session_id, event.peer, self.address)
        elif isinstance(event, Drained):
            self.pump.close(None)
        elif isinstance(event, Closed):
            if not self._is_proved:
                self._reception.shaken(self)
            self._reception.left(self)
            self._log_end(event)

    def leave(self) -> None:
        """Ask the caller to close the stream; one without a caller yet is closed at once."""
        if self._is_proved:
            self.session.leave("This node is stopping.", self._reception.loop.time())
            self.pump.flush()
        else:
            self.pump.close(None)

    def _admit(self, call: IncomingCall) -> None:
        session = self.session
        if call.encoding == PICKLE and not session.pickle_allowed:
            session.reply(call, ERROR, NO_PICKLE)
            return
        refusal = self._reception.refusal(call, session.peer)
        if refusal is not None:
            session.reply(call, ERROR, refusal)
            return
        call.sink = self.mailbox
        call.max_reply_bytes = session.peer_max_message_bytes
        if call.kind != CALL:
            if call.kind == ORDERED_CAST:
                call.lane = (session.peer, session.shard_key)
            elif call.kind == BLOCK_CALL:
                call.lane = "block_call"
        self._reception.executor.submit(call)

    def _log_end(self, event: Closed) -> None:
        failure, reception = event.failure, self._reception
        if failure is None or (failure.reason == "closed" and not failure.message):
            return
        reception.counters.add(f"streams_{failure.reason}")
        reception.log.warning(
            (self.host, failure.reason),
            "Stream %s of %s (%s) ended: %s (%s)",
            self.session.identity.session_id,
            self.session.peer or "nobody",
            self.address,
            failure.reason,
            failure.message,
        )
