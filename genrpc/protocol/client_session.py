"""The calling end of a peer stream: takes calls, gives frames, ends each call exactly once.

The only clock that ends a call is this one: a gRPC deadline would kill the stream of all.
What a call's failure says about its execution is decided here, by what was handed to the
transport: until the last byte of a call was, it has certainly not started.
Over 400 lines, for it is one state machine: its halves would share all of its fields.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP, message_of

from . import frames
from .chunks import MAX_PARTS, Assembly, Transfer
from .events import Answered, CallsEnded, CallsReturned, Drained, Opened, ProtocolError
from .frames import ChunkOut, ChunkView
from .outbox import MAX_CALLS_IN_FRAME
from .pending import (
    CALL,
    ENDED,
    ERROR,
    INLINE_BYTES,
    ORDERED_CAST,
    PICKLE,
    SENDING,
    SENT,
    THROWN,
    VALUE,
    WAITING,
    Call,
    Pending,
    Target,
)
from .session import (
    DEADLINE_SLACK,
    MAX_TARGETS,
    REVISION,
    Authenticator,
    Failure,
    Limits,
    Phase,
    Session,
)

MAX_WORDS = 500
"""Characters of a stranger's sentence that are kept."""

MAX_TIMEOUT = 1e13
"""Seconds; about the most that the wire can say, and as good as for ever."""

CONTENT_TYPES = ("application/x-python-pickle", "application/json")

_REASONS = {
    pb.ERROR_REASON_INVALID_COOKIE: "invalid_cookie",
    pb.ERROR_REASON_BAD_NODE: "badnode",
    pb.ERROR_REASON_OVERLOAD: "overload",
    pb.ERROR_REASON_DRAINING: "draining",
}


@dataclass(frozen=True, slots=True)
class Route:
    """Between which nodes a session is, and by which name among those of its caller."""

    node: str
    target_node: str
    shard_key: str = ""


class ClientSession(Session):
    """The caller's end of one stream.

    `connect_deadline` is on the loop's clock, `idle_timeout` in seconds; None for no limit.
    """

    def __init__(
        self,
        route: Route,
        authenticator: Authenticator,
        limits: Limits,
        *,
        connect_deadline: float | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        super().__init__(limits)
        self.route = route
        self.connect_deadline = connect_deadline
        self.idle_timeout = idle_timeout
        self.pending = Pending()
        self._authenticator = authenticator
        self._hello = pb.Hello()
        self._challenge: pb.Challenge | None = None
        self._next_id = 1
        self._ready_at = 0.0
        self._small: deque[Call] = deque()
        self._large: deque[Call] = deque()
        self._casts: deque[Call] = deque()
        self._cast_bytes = 0
        self._casts_open = 0  # sent and not yet counted as over
        self._cast_window = limits.cast_window
        self._cast_transfers: dict[int, Call] = {}
        self._ordered_transfer: Call | None = None  # later ordered casts wait for it
        self._targets: dict[Target, int] = {}
        self._cancels: list[int] = []
        self._pings: dict[int, float] = {}
        self._drained = False
        self._finishing = False
        self.opened_at = 0.0
        self.challenged_at: float | None = None
        self.was_ready = False
        self.distrusts = False  # it was ended because the server is not who it should be

    def __repr__(self) -> str:
        route = self.route
        return (
            f"<ClientSession {route.node} to {route.target_node} {self.phase.name},"
            f" {len(self.pending)} calls, {len(self._casts)} casts waiting>"
        )

    # ------------------------------------------------------------ calls

    def submit(self, call: Call, now: float) -> None:
        """Take a call over: it will end exactly once. Not for a session that is leaving."""
        call.id = self._next_id
        self._next_id += 1
        call.progress_at = self.last_active = now
        if call.kind != CALL and call.is_cast:
            self._submit_cast(call)
            return
        # As _check_at says for a call that waits, by hand: it is half of what a call costs here.
        send_timeout, check_at = call.send_timeout, call.deadline
        if send_timeout is not None and (check_at is None or check_at > now + send_timeout):
            check_at = now + send_timeout
        self.pending.add(call, check_at)
        if call.buffers or call.size > INLINE_BYTES:  # is_large
            self._large.append(call)
        else:
            self._small.append(call)

    def _submit_cast(self, call: Call) -> None:
        limits = self.limits
        if len(self._casts) >= limits.max_queued_casts:
            self._end(call, _too_many_casts("max_queued_casts", limits.max_queued_casts))
            return
        if self._cast_bytes + call.size > limits.max_queued_bytes:
            self._end(call, _too_many_casts("max_queued_bytes", limits.max_queued_bytes))
            return
        self._cast_bytes += call.size
        self._casts.append(call)

    def cancel(self, call: Call) -> None:
        """End a call because its caller gave it up."""
        if self.pending.calls.get(call.id) is call:
            self._give_up(call, BadRPC("cancelled"))
            self._look_drained()

    def ping(self, nonce: int, now: float) -> None:
        """Ask the other side for an answer."""
        self._pings[nonce] = now
        self._frames.append(pb.ConnectRequest(ping=pb.Ping(nonce=nonce)).SerializeToString())

    @property
    def in_flight(self) -> bool:
        """Whether anything waits or is on its way."""
        return bool(self.pending.calls or self._casts or self._casts_open or self._pings)

    @property
    def has_unsent_casts(self) -> bool:
        """Whether casts were not handed to the transport yet."""
        return bool(self._casts or self._cast_transfers)

    def finish(self, failure: Failure) -> None:
        """Fail all calls, send what was cast, and then be drained."""
        self._finishing = True
        for call in self.pending:
            self._give_up(call, failure)
        if self.phase is Phase.READY:
            self.phase = Phase.LEAVING
        if self.phase < Phase.READY and not self.has_unsent_casts:
            self.close(failure)
        self._look_drained()

    # ------------------------------------------------------------ time

    def opened(self, now: float) -> None:
        """There is a stream: begin the handshake, unless the session is over by now."""
        if self.phase is not Phase.CONNECTING:
            return
        self.phase = Phase.HANDSHAKE
        self.opened_at = self.last_active = now
        self._hello = pb.Hello(
            revision_max=REVISION,
            revision_min=REVISION,
            node=self.route.node,
            target_node=self.route.target_node,
            nonce=self._authenticator.new_nonce(),
            content_types=CONTENT_TYPES,
            shard_key=self.route.shard_key,
            want_pickle=True,
        )
        self._frames.append(pb.ConnectRequest(hello=self._hello).SerializeToString())

    def next_deadline(self) -> float | None:
        """When a call, the dialling or the idle stream is to be looked at next."""
        check_at = self.pending.next_check()
        other = self.connect_deadline if self.phase < Phase.READY else self._idle_at()
        if check_at is None or (other is not None and other < check_at):
            return other
        return check_at

    def _idle_at(self) -> float | None:
        """When the stream will have been idle for long enough to be left."""
        if self.idle_timeout is None or self.phase is not Phase.READY or self.in_flight:
            return None
        return self.last_active + self.idle_timeout

    def tick(self, now: float) -> None:
        """End what is overdue: calls, the dialling, an idle stream."""
        now += DEADLINE_SLACK
        for call in self.pending.due(now):
            self._look_at(call, now)
        if self.phase < Phase.READY:
            if self.connect_deadline is not None and self.connect_deadline <= now:
                self.close(BadTCP("connect_timeout", "not_started"))
        else:
            idle_at = self._idle_at()
            if idle_at is not None and idle_at <= now:
                self.phase = Phase.LEAVING
        self._look_drained()

    def _look_drained(self) -> None:
        """Tell, once, that a session that is leaving has nothing left to do."""
        left = self.has_unsent_casts if self._finishing else self.in_flight
        if self.phase is Phase.LEAVING and not left and not self._drained:
            self._drained = True
            self._events.append(Drained())

    def _check_at(self, call: Call, now: float) -> float | None:
        """When to look at the call: at its deadline, or earlier if it may not be sent in time."""
        if call.state is SENT or call.send_timeout is None:
            return call.deadline
        begin = max(call.progress_at, self._ready_at) if self.phase >= Phase.READY else now
        send_by = begin + call.send_timeout
        return send_by if call.deadline is None else min(call.deadline, send_by)

    def _look_at(self, call: Call, now: float) -> None:
        if call.deadline is not None and call.deadline <= now:
            self._give_up(call, BadRPC("timeout"))
            return
        check_at = self._check_at(call, now)
        if check_at is not None and check_at <= now:
            self._give_up(call, BadTCP("send_timeout"))
        else:
            self.pending.recheck(call, check_at)

    def _give_up(self, call: Call, failure: Failure) -> None:
        """End a call before its reply; the other side is told if it may know of it."""
        self.pending.pop(call.id)
        if call.state is SENT:
            self._cancels.append(call.id)
        else:
            self.transfers.abandon(call.id)
        self._discard(call.id)
        self._end(call, failure)

    def _end(self, call: Call, failure: Failure) -> None:
        _fail(call, failure)
        self._ended([call])

    def _ended(self, calls: list[Call]) -> None:
        if calls:
            self._events.append(CallsEnded(calls))

    def _end_all(self, failure: Failure) -> None:
        ended = [*self.pending, *self._casts, *self._cast_transfers.values()]
        for call in ended:
            _fail(call, failure)
        self.pending = Pending()
        self._clear()
        self._ended(ended)

    def _clear(self) -> None:
        self._small.clear()
        self._large.clear()
        self._casts.clear()
        self._cast_bytes = 0
        self._cast_transfers.clear()
        self._ordered_transfer = None

    # ------------------------------------------------------------ receiving

    def _receive(self, frame: bytes, now: float) -> None:
        begin = frames.batch_begin(frame) if self.phase >= Phase.READY else 0
        if begin:
            self._take_batch(*frames.decode_replies(frame, begin), now)
            return
        response = frames.decode_response(frame)
        kind = response.WhichOneof("frame")
        if kind == "go_away":
            self._leave(response.go_away)
        elif kind == "challenge" and self._challenge is None and self.phase is Phase.HANDSHAKE:
            self.challenged_at = now
            self._answer(response.challenge)
        elif kind == "welcome" and self._challenge and self.phase is Phase.HANDSHAKE:
            self._open(response.welcome, now)
        elif kind == "pong" and self.phase >= Phase.READY:
            sent_at = self._pings.pop(response.pong.nonce, None)
            if sent_at is not None:
                self._events.append(Answered(now - sent_at))
                self._look_drained()
        elif kind == "replies" and self.phase >= Phase.READY:  # with a field of a later revision
            self._take_batch(response.replies, frames.chunk_of(response.replies), now)
        else:
            raise ProtocolError(f"the server sent {kind or 'nothing known'} out of turn")

    def _take_batch(self, batch: pb.ReplyBatch, chunk: ChunkView | None, now: float) -> None:
        self._take_replies(batch)
        if chunk is not None:
            self._take_chunk(chunk, now)
        self._look_drained()

    def _answer(self, challenge: pb.Challenge) -> None:
        fault = self._authenticator.challenge_fault(self._hello, challenge)
        if fault is not None:
            raise ProtocolError(fault[1], fault[0])
        self._challenge = challenge
        proof = pb.AuthProof(
            mac=self._authenticator.client_proof(self._hello, challenge),
            window_bytes=self.limits.window_bytes,
            max_frame_bytes=self.limits.max_frame_bytes,
            max_message_bytes=self.limits.max_message_bytes,
            max_transfer_bytes=self.limits.max_transfer_bytes,
        )
        self._frames.append(pb.ConnectRequest(auth_proof=proof).SerializeToString())

    def _open(self, welcome: pb.Welcome, now: float) -> None:
        assert self._challenge is not None
        expected = self._authenticator.server_proof(self._hello, self._challenge)
        if not self._authenticator.matches(expected, welcome.mac):
            raise ProtocolError("the server does not know the cookie", "invalid_cookie")
        self._agree(welcome)
        self._cast_window = welcome.cast_window or self._cast_window
        self.phase = Phase.LEAVING if self._finishing else Phase.READY
        self._ready_at = now
        self.was_ready = True
        self._events.append(Opened(welcome.session_id, self.route.target_node))

    def _leave(self, go_away: pb.GoAway) -> None:
        if self.phase is Phase.HANDSHAKE:
            reason = _REASONS.get(go_away.reason)
            if reason is None:
                self.close(BadTCP("closed", message=go_away.message))
            else:
                self.close(_refused(reason, go_away.message[:MAX_WORDS]))
        elif self.phase is Phase.READY:
            self.phase = Phase.LEAVING
            returned = [call for call in self.pending if call.state is WAITING]
            for call in returned:
                self.pending.pop(call.id)
                self.transfers.abandon(call.id)
            returned += self._take_back_casts()
            for lane in (self._small, self._large, self._casts):
                lane.clear()
            self._cast_bytes = 0
            self._events.append(CallsReturned(returned))
            self._look_drained()

    def _take_back_casts(self) -> list[Call]:
        """Take the casts of which nothing was sent out of the session, in their order."""
        unsent = [call for call in self._cast_transfers.values() if call.state is WAITING]
        for call in unsent:
            self.transfers.abandon(call.id)
            self._cast_left(call)
        self._casts_open -= len(unsent)
        return [*unsent, *self._casts]

    def _break(self, error: ProtocolError) -> None:
        failure: Failure
        if error.reason == "corrupt_data":
            failure = BadTCP("corrupt_data", message=f"The peer broke the protocol: {error}.")
        else:
            self.distrusts = True
            failure = _refused(error.reason, str(error))
        self.close(failure)

    def _take_replies(self, batch: pb.ReplyBatch) -> None:
        self.transfers.credit += batch.credit
        self._casts_open -= batch.casts_done
        if self._casts_open < 0:
            raise ProtocolError("the server counted more casts than were sent")
        ids, payloads = batch.call_ids, batch.payloads
        count = len(ids)
        if not count:
            return
        if len(payloads) != count:
            raise ProtocolError(f"{count} replies came with {len(payloads)} payloads")
        ended = []
        pop = self.pending.calls.pop
        if batch.outcomes or len(self.transfers):
            outcomes = frames.aligned(batch.outcomes, count, VALUE)
            for outcome in outcomes:  # all of them before any call is taken out of `pending`
                _check_outcome(outcome)
            for call_id, head, outcome in zip(ids, payloads, outcomes, strict=False):
                call = pop(call_id, None)
                if call is not None:
                    self._stop_sending(call)
                    call.state, call.outcome, call.head, call.buffers = ENDED, outcome, head, ()
                    ended.append(call)
        else:  # the way of nearly all replies: no array but ids and payloads
            for call_id, head in zip(ids, payloads, strict=False):
                call = pop(call_id, None)
                if call is not None:  # else a late reply: it reaches nobody
                    call.state, call.head, call.buffers = ENDED, head, ()
                    ended.append(call)
        self._ended(ended)

    def _stop_sending(self, call: Call) -> None:
        """Let go of the rest of a request that is answered before all of it was sent."""
        if call.state is not SENT:
            self.transfers.abandon(call.id)

    def _begin_assembly(self, chunk: ChunkView, start: pb.TransferStart, now: float) -> bool:
        call = self.pending.calls.get(chunk.call_id)
        if call is None:
            return False
        _check_outcome(start.outcome)
        limit = self._limit_of(start)
        if limit is not None:
            self.pending.pop(call.id)
            self._stop_sending(call)
            bound = getattr(self.limits, limit)
            call.fail(
                BadRPC(
                    "too_large", "finished", f"The result is over this node's {limit} ({bound})."
                )
            )
            self._ended([call])
            return False
        return True

    def _assembled(self, call_id: int, assembly: Assembly, now: float) -> None:
        head, buffers = assembly.parts()
        call = self.pending.pop(call_id)
        if call is not None:
            self._stop_sending(call)
            call.head, call.buffers = head, buffers
            call.outcome, call.state = assembly.start.outcome, ENDED
            self._ended([call])

    def _abandoned(self, call_id: int) -> None:
        super()._abandoned(call_id)
        call = self.pending.pop(call_id)
        if call is not None:
            self._stop_sending(call)
            call.fail(
                BadRPC("bad_result", "finished", "The peer gave up sending the result halfway.")
            )
            self._ended([call])

    # ------------------------------------------------------------ sending

    def _batch_to_send(self, now: float) -> bytes | None:
        if self._drained:  # the owner was told that the stream may be closed
            return None
        if not (
            self._small
            or self._casts
            or self._large
            or self._cancels
            or self.transfers.has_next
            or self.window.owes
        ):
            if self._finishing:
                self._look_drained()
            return None
        if self._large:
            self._begin_transfers()
        # A number must not change its target within a frame, for the targets of a frame are
        # entered before its calls are read: so the table is begun anew before it is full.
        if len(self._targets) > MAX_TARGETS - MAX_CALLS_IN_FRAME - 1:
            self._targets.clear()
        batch = pb.CallBatch()
        calls = self._next_calls()
        if calls:
            self._write_calls(batch, calls, now)
        chunk = self._next_chunk(batch, now)
        tells = bool(calls or chunk)
        if self._cancels:
            batch.cancels.extend(self._cancels[:MAX_CALLS_IN_FRAME])
            del self._cancels[:MAX_CALLS_IN_FRAME]
            tells = True
        if self.window.owes or (tells and self.window.has_received):
            batch.credit = self.window.grant()
            tells = True
        if self._finishing:
            self._look_drained()
        return frames.encode_batch(batch, chunk) if tells else None

    def _begin_transfers(self) -> None:
        while self._large:
            call = self._large.popleft()
            if call.state is WAITING:
                self._begin_transfer(call)

    def _begin_transfer(self, call: Call) -> bool:
        if call.size > self.peer_max_message_bytes:
            self.pending.pop(call.id)
            self._end(
                call,
                BadRPC(
                    "too_large",
                    message=f"The request has {call.size} bytes,"
                    f" over the peer's max_message_bytes ({self.peer_max_message_bytes}).",
                ),
            )
            return False
        if len(call.buffers) >= MAX_PARTS:
            self.pending.pop(call.id)
            self._end(
                call,
                BadRPC(
                    "too_large",
                    message=f"The request has {len(call.buffers)} buffers,"
                    f" of which at most {MAX_PARTS - 1} can be sent.",
                ),
            )
            return False
        start = pb.TransferStart(encoding=call.encoding, kind=call.kind)
        self.transfers.add(Transfer(call.id, start, [call.head, *call.buffers], call))
        return True

    def _next_calls(self) -> list[Call]:
        """Take what is small and waits, up to a frame's worth."""
        calls: list[Call] = []
        size, limit, small = 0, self._inline_bytes, self._small
        while small and len(calls) < MAX_CALLS_IN_FRAME and size < limit:
            call = small.popleft()
            if call.state is WAITING:  # else it ended while it waited
                size += call.size
                calls.append(call)
        if self._casts:
            self._next_casts(calls, size)
        return calls

    def _next_casts(self, calls: list[Call], size: int) -> None:
        casts, sent = self._casts, 0
        room = self._cast_window - self._casts_open
        limit = self._inline_bytes
        while casts and sent < room and len(calls) < MAX_CALLS_IN_FRAME and size < limit:
            call = casts[0]
            ordered = call.kind == ORDERED_CAST
            if ordered and self._ordered_transfer is not None:
                break  # the order would be lost
            casts.popleft()
            self._cast_bytes -= call.size
            if not (call.buffers or call.size > INLINE_BYTES):  # is_large, by hand
                size += call.size
                calls.append(call)
                sent += 1
            elif self._begin_transfer(call):
                sent += 1
                self._cast_transfers[call.id] = call
                if ordered:
                    self._ordered_transfer = call
        self._casts_open += sent

    def _write_calls(self, batch: pb.CallBatch, calls: list[Call], now: float) -> None:
        # One pass by hand and plain lists: this loop is most of what a call costs here.
        ids, targets, heads, timeouts = [], [], [], []
        known, plain, timed = self._targets, True, False
        for call in calls:
            call.state = SENT
            ids.append(call.id)
            number = known.get(call.target)
            if number is None:
                number = self._name_target(batch, call.target)
            targets.append(number)
            heads.append(call.head)
            deadline = call.deadline
            if deadline is None:
                timeouts.append(0)
            else:
                timed = True
                left = deadline - now
                timeouts.append(int(left * 1e6) if 1e-5 < left < MAX_TIMEOUT else _timeout_us(left))
            if call.kind != CALL or call.encoding != PICKLE:
                plain = False
        if not plain:
            batch.kinds.extend(frames.fill([call.kind for call in calls], CALL))
            batch.encodings.extend(frames.fill([call.encoding for call in calls], PICKLE))
        batch.call_ids.extend(ids)
        batch.call_targets.extend(targets)
        batch.payloads.extend(heads)
        if timed:
            batch.timeouts_us.extend(timeouts)

    def _name_target(self, batch: pb.CallBatch, target: Target) -> int:
        number = self._targets[target] = len(self._targets)
        module, function, version = target
        batch.targets.add(number=number, module=module, function=function, module_version=version)
        return number

    def _chunk_left(
        self, owner: object, chunk: ChunkOut, batch: pb.CallBatch | pb.ReplyBatch, now: float
    ) -> None:
        assert isinstance(owner, Call)
        if chunk.start is not None:
            assert isinstance(batch, pb.CallBatch)
            number = self._targets.get(owner.target)
            chunk.start.target = (
                self._name_target(batch, owner.target) if number is None else number
            )
            if owner.deadline is not None:
                chunk.start.timeout_us = _timeout_us(owner.deadline - now)
        owner.progress_at = now
        owner.state = SENT if chunk.last else SENDING
        if chunk.last:
            self._cast_left(owner)

    def _cast_left(self, call: Call) -> None:
        """Forget a large cast; the ordered casts behind it may go."""
        self._cast_transfers.pop(call.id, None)
        if call is self._ordered_transfer:
            self._ordered_transfer = None


def _fail(call: Call, failure: Failure) -> None:
    """Give a call its failure, with what is known of its execution."""
    if call.state is not SENT:
        failure = replace(failure, execution="not_started")
    elif failure.execution == "not_started":  # nobody knows that of what was handed over
        failure = replace(failure, execution="unknown")
    call.fail(failure)


def _too_many_casts(limit: str, bound: int) -> BadRPC:
    return BadRPC(
        "overload",
        message=f"Too many casts wait for this peer already ({limit}, {bound}): send slower,"
        " or raise it.",
    )


def _refused(reason: str, words: str) -> BadRPC:
    """A failed handshake: what to do about it, and what the side says that ended it."""
    if reason in ("overload", "draining") and words:  # a sentence, and nearer the mark than ours
        return BadRPC(reason, message=words)
    return BadRPC(reason, message=f"{message_of(BadRPC(reason))} ({words.rstrip('.')}.)")


def _timeout_us(seconds: float) -> int:
    """How long is left, in the wire's terms: 0 would mean for ever."""
    return max(1, int(min(seconds, MAX_TIMEOUT) * 1e6))


def _check_outcome(outcome: int) -> None:
    if outcome not in (VALUE, ERROR, THROWN):
        raise ProtocolError(f"a reply has the unknown outcome {outcome}")
