"""The calls that come in: who may have what run, and how many at once.

`Reception` is a node's: it decides for each call that arrives whether it runs, by the policy,
by the number of calls that the peer has already, and by whether the node is stopping. An
`InboundStream` drives one accepted stream. All of it is for the loop thread, except that
executors post replies to a stream's mailbox.
Over 400 lines, since a stream and the reception that admits its calls count the same calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from genrpc import codec
from genrpc.executor import Executor, unauthorized
from genrpc.loops import LoopThread, Mailbox
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
    ANSWERED,
    BLOCK_CALL,
    ERROR,
    ORDERED_CAST,
    PICKLE,
    IncomingCall,
    Target,
)
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Authenticator, Limits, Phase
from genrpc.settings import Settings
from genrpc.telemetry import Audit, Counters, RateLimitedLog, origin_of
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

PATIENCE_SECONDS = 1.0
"""How long a handshake may take when others wait for its place. Without this, a stranger that
says nothing in all places would lock the node's own peers out."""

# How errors begin of which the audit log tells: with the number of their reason.
_UNAUTHORIZED, _TOO_LARGE, _BAD_ARGUMENTS = (
    codec.encode_error(reason, "not_started")[:2]
    for reason in ("unauthorized", "too_large", "bad_arguments")
)

# What `genrpc.policy.pickles` and `arrays` say of a pickle that reaches for more than it may.
_NOT_LET_IN = b" let in"

if TYPE_CHECKING:
    from genrpc.protocol.pending import Ended


class Caller(NamedTuple):
    """Who calls, for limits and logs: a node or a token, its address, and its session if any."""

    peer: str
    address: str
    session: str = ""


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
        thread: LoopThread,
    ) -> None:
        self.node = node
        self.instance_id = secrets.token_hex(8)
        self.settings = settings
        self.authenticator = authenticator
        self.limits = limits
        self.executor = executor
        self.counters = counters
        self.loop = thread.loop
        self.wake = thread.wake
        self.log = RateLimitedLog(log)
        self.audit = Audit(node, counters)
        self.streams: set[InboundStream] = set()
        self.calls_of: Counter[str] = Counter()  # running and queued, by peer
        self.calls = 0  # the same of all peers
        self.running = 0  # the same with casts
        self.handshakes_of: Counter[str] = Counter()  # by address
        self.draining = False
        self._shaking: dict[InboundStream, None] = {}  # those of the handshakes, in their order
        self._is_stopping = f"{node} is stopping and takes no more calls: call another node."
        self._verdicts: dict[Target, bytes | None] = {}
        self._ended: asyncio.Event | None = None  # set when a call or a stream has

    @property
    def handshakes(self) -> int:
        """Streams whose peer has not proved itself yet."""
        return len(self._shaking)

    def accept(
        self, stream: AnyStream, address: str, authenticator: Authenticator | None = None
    ) -> None:
        """Serve a stream that was accepted."""
        inbound = InboundStream(self, address, authenticator or self.authenticator)
        self.streams.add(inbound)
        self._shaking[inbound] = None
        self.handshakes_of[inbound.origin] += 1
        if self.draining:
            inbound.session.refuse("draining", "This node is stopping and takes no new streams.")
        elif len(self.streams) > self.settings.max_connections:
            inbound.refuse("max_connections", "This node has max_connections streams already.")
        else:
            self._limit_handshakes(inbound)
        inbound.pump.attach(stream)

    def _limit_handshakes(self, inbound: InboundStream) -> None:
        """Refuse a stream if too many are at their handshake, unless one has been for long."""
        settings, origin = self.settings, inbound.origin
        if self.handshakes_of[origin] > settings.max_pending_handshakes_per_address:
            limit = "max_pending_handshakes_per_address"
            others = (each for each in self._shaking if each.origin == origin)
        elif self.handshakes > settings.max_pending_handshakes:
            limit = "max_pending_handshakes"
            others = (each for each in self._shaking)
        else:
            return
        oldest = next(others)
        is_slow = self.loop.time() - oldest.begun_at > PATIENCE_SECONDS
        refused = oldest if is_slow else inbound
        refused.refuse(limit, f"Too many handshakes are under way on this node ({limit}).")
        refused.pump.flush()
        refused.pump.close(None)  # it makes room at once, also if it does not read

    def change_policy(self, control: str, entries: Sequence[str]) -> None:
        """Let another policy decide from now on, on open streams too."""
        self.executor.change_policy(control, entries)
        self._verdicts.clear()

    def admits(self, calls: Sequence[IncomingCall], caller: Caller) -> bool:
        """Whether all these calls run, at a glance; then they count from now on.

        Else `refusal` says which of them do; for a frame full of calls that is much slower.
        """
        count, verdicts, seen = 0, self._verdicts, None
        for call in calls:
            if call.target is not seen:
                seen = call.target
                if verdicts.get(seen, b"") is not None:
                    return False
            if call.kind in ANSWERED:
                count += 1
        if self.draining:
            return False
        if count:
            of_peer, in_all = self.calls_of[caller.peer] + count, self.calls + count
            if of_peer > self.settings.max_calls or in_all > self.settings.max_node_calls:
                return False
            self.calls_of[caller.peer], self.calls = of_peer, in_all
        self.running += len(calls)
        return True

    def refusal(self, call: IncomingCall, caller: Caller) -> bytes | None:
        """Why a call is not run, as an encoded error; None: it is, and counts from now on."""
        target = call.target
        try:
            verdict = self._verdicts[target]
        except KeyError:
            verdict = self._screen(target)
        if verdict is not None:
            self.refused_target(call, caller, "unauthorized")
            return verdict
        if self.draining:
            self.counters.add("refused_draining")
            return codec.encode_error("draining", "not_started", self._is_stopping)
        if not call.is_cast:
            peer, settings = caller.peer, self.settings
            if self.calls_of[peer] >= settings.max_calls:
                return self._overload(call, caller, "max_calls", f" of {peer}")
            if self.calls >= settings.max_node_calls:
                return self._overload(call, caller, "max_node_calls", "")
            self.calls_of[peer] += 1
            self.calls += 1
        self.running += 1
        return None

    def _overload(self, call: IncomingCall, caller: Caller, limit: str, whose: str) -> bytes:
        self.counters.add("refused_overload")
        self.hit_limit(call, caller, limit)
        message = (
            f"{self.node} has {getattr(self.settings, limit)} calls{whose} already ({limit}):"
            " call again later."
        )
        return codec.encode_error("overload", "not_started", message)

    def refused_target(self, call: IncomingCall, caller: Caller, reason: str) -> None:
        """Count and tell that a caller asked for what it may not have."""
        if reason == "unauthorized":
            self.counters.add("refused_unauthorized")
        self.audit.refused_target(
            caller.address,
            reason,
            ":".join(call.target[:2]),
            identity=caller.peer,
            session=caller.session,
        )

    def hit_limit(self, call: IncomingCall, caller: Caller, limit: str) -> None:
        """Count and tell that a call met a limit."""
        self.audit.limit_hit(
            caller.address,
            limit,
            identity=caller.peer,
            session=caller.session,
            target=":".join(call.target[:2]),
        )

    def _screen(self, target: Target) -> bytes | None:
        if len(self._verdicts) >= MAX_REMEMBERED_VERDICTS:
            self._verdicts.clear()
        allowed = self.executor.policy.screen(target[0], target[1])
        verdict = None if allowed else unauthorized(target[0], target[1])
        self._verdicts[target] = verdict
        return verdict

    def ended(self, items: Sequence[Ended], caller: Caller) -> None:
        """Calls that counted have ended, with the replies that are told."""
        calls = 0
        for call, outcome, head, _ in items:
            if call.kind in ANSWERED:
                calls += 1
            if outcome == ERROR:
                self._look_at_error(call, head, caller)
        if calls:
            left = self.calls_of[caller.peer] - calls
            if left > 0:
                self.calls_of[caller.peer] = left
            else:
                del self.calls_of[caller.peer]
            self.calls -= calls
        self.running -= len(items)
        self.counters.add("calls_served", len(items))
        if self._ended is not None:
            self._ended.set()

    def _look_at_error(self, call: IncomingCall, head: bytes, caller: Caller) -> None:
        """Tell of what only a worker could find out: what a name led to, how large a result is."""
        reason = head[:2]
        if reason == _UNAUTHORIZED:
            self.refused_target(call, caller, "unauthorized")
        elif reason == _TOO_LARGE:
            # What a unary method answers is one frame.
            narrow = self.settings.max_message_bytes < self.settings.max_frame_bytes
            limit = "max_message_bytes" if caller.session or narrow else "max_frame_bytes"
            self.hit_limit(call, caller, limit)
        elif reason == _BAD_ARGUMENTS and b"max_depth" in head:
            self.hit_limit(call, caller, "max_depth")
        elif reason == _BAD_ARGUMENTS and _NOT_LET_IN in head:
            self.refused_target(call, caller, "pickle")

    def shaken(self, inbound: InboundStream) -> None:
        """A handshake has ended, well or badly."""
        del self._shaking[inbound]
        left = self.handshakes_of[inbound.origin] - 1
        if left:
            self.handshakes_of[inbound.origin] = left
        else:
            del self.handshakes_of[inbound.origin]

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
        self.origin = origin_of(address)
        self.begun_at = reception.loop.time()
        self.limit_hit = ""  # the one for which it was ended
        self._reception = reception
        session_id = secrets.token_hex(6)
        self._caller = Caller("", address, session_id)  # until it has proved itself
        self.session = ServerSession(
            Identity(reception.node, reception.instance_id, session_id),
            authenticator,
            reception.limits,
            handshake_deadline=self.begun_at + settings.handshake_timeout,
            idle_timeout=settings.server_inactivity_timeout,
            max_age=settings.max_connection_age,
        )
        self._is_proved = False
        self.mailbox: Mailbox[Ended] = Mailbox(reception.loop, self._woken, reception.wake)
        self.pump: Pump[Ended] = Pump(reception.loop, self.session, self, self.mailbox)

    def _woken(self) -> None:
        if self.session.phase is Phase.CLOSED:
            self._see_calls_end()
        else:
            self.pump.flush()

    def _see_calls_end(self) -> None:
        """The stream is gone, and its calls still end, one by one."""
        while True:
            self.take_in(self.mailbox.take(), 0.0)
            if self.mailbox.rest():
                break
        if not self.session.is_owed:
            self.mailbox.close()

    def take_in(self, items: Sequence[Ended], now: float) -> None:
        """Calls have ended."""
        self.session.reply_all(items)
        self._reception.ended(items, self._caller)

    def handle(self, event: Event) -> None:
        """Something happened on the stream."""
        if isinstance(event, CallsArrived):
            self._admit(event.calls)
        elif isinstance(event, CallsCancelled):
            for call in event.calls:
                self._reception.executor.cancel(call)
        elif isinstance(event, TransferRefused):
            self._reception.hit_limit(event.call, self._caller, event.limit)
            error = codec.encode_error(event.reason, "not_started", event.message)
            self.session.reply(event.call, ERROR, error)
        elif isinstance(event, Opened):
            self._is_proved = True
            self._caller = Caller(event.peer, self.address, event.session_id)
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
            self.pump.detach_mailbox()
            self._see_calls_end()

    def refuse(self, limit: str, message: str) -> None:
        """End the handshake because of a limit."""
        self.limit_hit = limit
        self.session.refuse("overload", message)

    def leave(self) -> None:
        """Ask the caller to close the stream; one without a caller yet is closed at once."""
        if self._is_proved:
            self.session.leave("This node is stopping.", self._reception.loop.time())
            self.pump.flush()
        else:
            self.pump.close(None)

    def _admit(self, calls: list[IncomingCall]) -> None:
        """Have those run that may, and answer the others."""
        session, sink = self.session, self.mailbox
        if not session.pickle_allowed or not self._reception.admits(calls, self._caller):
            calls = [call for call in calls if not self._is_refused(call)]
        max_reply_bytes = session.peer_max_message_bytes
        for call in calls:
            call.sink = sink
            call.max_reply_bytes = max_reply_bytes
            if call.kind == ORDERED_CAST:
                call.lane = (session.peer, session.shard_key)
            elif call.kind == BLOCK_CALL:
                call.lane = "block_call"
        self._reception.executor.submit_all(calls)

    def _is_refused(self, call: IncomingCall) -> bool:
        """Whether a call may not run, and then has its answer."""
        if call.encoding == PICKLE and not self.session.pickle_allowed:
            self._reception.refused_target(call, self._caller, "pickle")
            refusal: bytes | None = NO_PICKLE
        else:
            refusal = self._reception.refusal(call, self._caller)
        if refusal is None:
            return False
        self.session.reply(call, ERROR, refusal)
        return True

    def _log_end(self, event: Closed) -> None:
        failure, reception, session = event.failure, self._reception, self.session
        if failure is None or (failure.reason == "closed" and not failure.message):
            return
        reception.counters.add(f"streams_{failure.reason}")
        identity, session_id = session.peer or session.claimed, session.identity.session_id
        limit = self.limit_hit or session.limit_hit
        if limit:
            reception.audit.limit_hit(self.address, limit, identity=identity, session=session_id)
        elif self._is_proved or failure.reason == "draining":
            reception.log.warning(
                (self.origin, failure.reason),
                "Stream %s of %s (%s) ended: %s (%s)",
                session_id,
                session.peer or "nobody",
                self.address,
                failure.reason,
                failure.message,
            )
        else:
            reception.audit.refused_authentication(
                self.address,
                str(failure.reason),
                identity=identity,
                session=session_id,
                detail=failure.message,
            )
