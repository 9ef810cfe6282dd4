"""The calling end of a peer stream: takes calls, gives frames, ends each call exactly once.

The only clock that ends a call is this one: a gRPC deadline would kill the stream of all.
What a call's failure says about its execution is decided here, by what was handed to the
transport: until the last byte of a call was, it has certainly not started.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP

from . import frames
from .chunks import Assembly, Transfer
from .events import Answered, CallsEnded, CallsReturned, Drained, Opened, ProtocolError
from .frames import ChunkOut, ChunkView
from .outbox import MAX_CALLS_IN_FRAME, MAX_INLINE_IN_FRAME
from .pending import (
    CALL,
    ENDED,
    ERROR,
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
        self.pending.add(call, self._check_at(call, now))
        if call.is_large:
            self._large.append(call)
        else:
            self._small.append(call)

    def _submit_cast(self, call: Call) -> None:
        limits = self.limits
        if (
            len(self._casts) >= limits.max_queued_casts
            or self._cast_bytes + call.size > limits.max_queued_bytes
        ):
            self._end(
                call,
                BadRPC(
                    "overload",
                    message="Too many casts wait for this peer"
                    " already: send slower, or raise max_queued_casts or max_queued_bytes.",
                ),
            )
            return
        self._cast_bytes += call.size
        self._casts.append(call)

    def cancel(self, call: Call) -> None:
        """End a call because its caller gave it up."""
        if call.state is not ENDED and call.id in self.pending.calls:
            self._give_up(call, BadRPC("cancelled"))

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

    # ------------------------------------------------------------ time

    def opened(self, now: float) -> None:
        """There is a stream: begin the handshake."""
        self.phase = Phase.HANDSHAKE
        self.last_active = now
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
        times = [self.pending.next_check()]
        if self.phase < Phase.READY:
            times.append(self.connect_deadline)
        elif self.idle_timeout is not None and not self.in_flight:
            times.append(self.last_active + self.idle_timeout)
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        now += DEADLINE_SLACK
        for call in self.pending.due(now):
            self._look_at(call, now)
        if self.phase < Phase.READY:
            if self.connect_deadline is not None and self.connect_deadline <= now:
                self.close(BadTCP("connect_timeout", "not_started"))
        elif self.idle_timeout is not None and not self.in_flight:
            if self.last_active + self.idle_timeout <= now and self.phase is Phase.READY:
                self.phase = Phase.LEAVING
        self._look_drained()

    def _look_drained(self) -> None:
        """Tell, once, that a session that is leaving has nothing left to do."""
        if self.phase is Phase.LEAVING and not self.in_flight and not self._drained:
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
            self._discard(call.id)
        elif call.state is SENDING:
            self.transfers.abandon(call.id)
        self._end(call, failure)

    def _end(self, call: Call, failure: Failure) -> None:
        """Give a call its failure, with what is known of its execution."""
        if call.state is not SENT:
            failure = replace(failure, execution="not_started")
        call.fail(failure)
        self._ended([call])

    def _ended(self, calls: list[Call]) -> None:
        if calls:
            self._events.append(CallsEnded(calls))

    def _end_all(self, failure: Failure) -> None:
        ended = [*self.pending, *self._casts, *self._cast_transfers.values()]
        for call in ended:
            known = call.state is not SENT
            call.fail(replace(failure, execution="not_started") if known else failure)
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
        if self.phase >= Phase.READY and frames.is_batch(frame):
            batch, chunk = frames.decode_replies(frame)
            self._take_replies(batch)
            if chunk is not None:
                self._take_chunk(chunk, now)
            if self.phase is Phase.LEAVING:
                self._look_drained()
            return
        response = frames.decode_response(frame)
        kind = response.WhichOneof("frame")
        if kind == "go_away":
            self._leave(response.go_away)
        elif kind == "challenge" and self._challenge is None and self.phase is Phase.HANDSHAKE:
            self._answer(response.challenge)
        elif kind == "welcome" and self._challenge and self.phase is Phase.HANDSHAKE:
            self._open(response.welcome, now)
        elif kind == "pong" and self.phase >= Phase.READY:
            sent_at = self._pings.pop(response.pong.nonce, None)
            if sent_at is not None:
                self._events.append(Answered(now - sent_at))
        else:
            raise ProtocolError(f"the server sent {kind or 'nothing known'} out of turn")

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
        )
        self._frames.append(pb.ConnectRequest(auth_proof=proof).SerializeToString())

    def _open(self, welcome: pb.Welcome, now: float) -> None:
        assert self._challenge is not None
        expected = self._authenticator.server_proof(self._hello, self._challenge)
        if not self._authenticator.matches(expected, welcome.mac):
            raise ProtocolError("the server does not know the cookie", "invalid_cookie")
        self._agree(welcome.window_bytes, welcome.max_frame_bytes, welcome.max_message_bytes)
        self._cast_window = welcome.cast_window or self._cast_window
        self.phase = Phase.READY
        self._ready_at = now
        self._events.append(Opened(welcome.session_id, self.route.target_node))

    def _leave(self, go_away: pb.GoAway) -> None:
        if self.phase is Phase.HANDSHAKE:
            reason = _REASONS.get(go_away.reason)
            if reason is None:
                self.close(BadTCP("closed", message=go_away.message))
            else:
                self.close(BadRPC(reason, message=go_away.message))
        elif self.phase is Phase.READY:
            self.phase = Phase.LEAVING
            returned = [call for call in self.pending if call.state is WAITING]
            for call in returned:
                self.pending.pop(call.id)
                self.transfers.abandon(call.id)
            returned += self._casts
            for lane in (self._small, self._large, self._casts):
                lane.clear()
            self._cast_bytes = 0
            self._events.append(CallsReturned(returned))
            self._look_drained()

    def _break(self, error: ProtocolError) -> None:
        failure: Failure
        if error.reason == "corrupt_data":
            failure = BadTCP("corrupt_data", message=f"The peer broke the protocol: {error}.")
        else:
            failure = BadRPC(error.reason, message=str(error))
        self.close(failure)

    def _take_replies(self, batch: pb.ReplyBatch) -> None:
        self.transfers.credit += batch.credit
        self._casts_open -= batch.casts_done
        ids, payloads = batch.call_ids, batch.payloads
        count = len(ids)
        if not count:
            return
        if len(payloads) != count:
            raise ProtocolError(f"{count} replies came with {len(payloads)} payloads")
        ended = []
        pop = self.pending.calls.pop
        if batch.outcomes:
            outcomes = frames.aligned(batch.outcomes, count, VALUE)
            for call_id, head, outcome in zip(ids, payloads, outcomes):
                call = pop(call_id, None)
                if call is not None:
                    _check_outcome(outcome)
                    call.state, call.outcome, call.head, call.buffers = ENDED, outcome, head, ()
                    ended.append(call)
        else:  # the way of nearly all replies: no array but ids and payloads
            for call_id, head in zip(ids, payloads):
                call = pop(call_id, None)
                if call is not None:  # else a late reply: it reaches nobody
                    call.state, call.head, call.buffers = ENDED, head, ()
                    ended.append(call)
        self._ended(ended)

    def _begin_assembly(self, chunk: ChunkView, start: pb.TransferStart, now: float) -> bool:
        call = self.pending.calls.get(chunk.call_id)
        if call is None:
            return False
        _check_outcome(start.outcome)
        if not self._fits(start):
            self.pending.pop(call.id)
            call.fail(
                BadRPC(
                    "too_large",
                    "finished",
                    "The result is over this node's"
                    f" max_message_bytes ({self.limits.max_message_bytes}).",
                )
            )
            self._ended([call])
            return False
        return True

    def _assembled(self, call_id: int, assembly: Assembly, now: float) -> None:
        call = self.pending.pop(call_id)
        if call is not None:
            call.head, call.buffers = assembly.parts()
            call.outcome, call.state = assembly.start.outcome, ENDED
            self._ended([call])

    # ------------------------------------------------------------ sending

    def _batch_to_send(self, now: float) -> bytes | None:
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
            batch.cancels.extend(self._cancels)
            self._cancels.clear()
            tells = True
        if self.window.owes or (tells and self.window.has_received):
            batch.credit = self.window.grant()
            tells = True
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
        start = pb.TransferStart(encoding=call.encoding, kind=call.kind)
        self.transfers.add(Transfer(call.id, start, [call.head, *call.buffers], call))
        return True

    def _next_calls(self) -> list[Call]:
        """Take what is small and waits, up to a frame's worth."""
        calls: list[Call] = []
        size, small = 0, self._small
        while small and len(calls) < MAX_CALLS_IN_FRAME and size < MAX_INLINE_IN_FRAME:
            call = small.popleft()
            if call.state is WAITING:  # else it ended while it waited
                size += call.size
                calls.append(call)
        if self._casts:
            self._next_casts(calls, size)
        return calls

    def _next_casts(self, calls: list[Call], size: int) -> None:
        casts = self._casts
        while (
            casts
            and len(calls) < MAX_CALLS_IN_FRAME
            and size < MAX_INLINE_IN_FRAME
            and self._casts_open < self._cast_window
        ):
            call = casts[0]
            ordered = call.kind == ORDERED_CAST
            if ordered and self._ordered_transfer is not None:
                break  # the order would be lost
            casts.popleft()
            self._cast_bytes -= call.size
            if not call.is_large:
                size += call.size
                calls.append(call)
                self._casts_open += 1
            elif self._begin_transfer(call):
                self._casts_open += 1
                self._cast_transfers[call.id] = call
                if ordered:
                    self._ordered_transfer = call

    def _write_calls(self, batch: pb.CallBatch, calls: list[Call], now: float) -> None:
        # One pass by hand and plain lists: this loop is most of what a call costs here.
        ids, targets, heads, timeouts = [], [], [], []
        kinds, encodings = [], []
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
                timeouts.append(max(1, int((deadline - now) * 1e6)))
            if call.kind != CALL or call.encoding != PICKLE:
                plain = False
        if not plain:
            kinds = [call.kind for call in calls]
            encodings = [call.encoding for call in calls]
        batch.call_ids.extend(ids)
        batch.call_targets.extend(targets)
        batch.payloads.extend(heads)
        if timed:
            batch.timeouts_us.extend(timeouts)
        batch.kinds.extend(frames.fill(kinds, CALL))
        batch.encodings.extend(frames.fill(encodings, PICKLE))

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
                chunk.start.timeout_us = max(1, int((owner.deadline - now) * 1e6))
        owner.progress_at = now
        owner.state = SENT if chunk.last else SENDING
        if chunk.last and self._cast_transfers.pop(owner.id, None) is self._ordered_transfer:
            self._ordered_transfer = None


def _check_outcome(outcome: int) -> None:
    if outcome not in (VALUE, ERROR, THROWN):
        raise ProtocolError(f"a reply has the unknown outcome {outcome}")
