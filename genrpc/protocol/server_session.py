"""The called end of a peer stream: proves itself, takes calls in, gives replies out.

Nothing of a call is looked at before the client has proved that it knows the cookie, and
nothing of its arguments ever: they go to the executor as they came.
Over 400 lines, for it is one state machine, the other half of `client_session`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP

from . import frames
from .chunks import Assembly, Transfer
from .events import (
    CallsArrived,
    CallsCancelled,
    Drained,
    Opened,
    ProtocolError,
    TransferRefused,
)
from .frames import ChunkOut, ChunkView
from .outbox import MAX_CALLS_IN_FRAME
from .pending import (
    ANSWERED,
    BLOCK_CALL,
    CALL,
    CASTS,
    INLINE_BYTES,
    PICKLE,
    VALUE,
    Buffer,
    IncomingCall,
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

REPLY_BYTES = 256
"""What an unread reply counts beside its payload, which may be empty: what holds it."""

LEAVE_SECONDS = 5.0
"""How long a client may take to close its side after it was told that the server leaves."""

_REFUSALS = {
    "invalid_cookie": pb.ERROR_REASON_INVALID_COOKIE,
    "badnode": pb.ERROR_REASON_BAD_NODE,
    "overload": pb.ERROR_REASON_OVERLOAD,
    "draining": pb.ERROR_REASON_DRAINING,
}

if TYPE_CHECKING:
    from .pending import Encoding, Ended, Outcome

    Reply = tuple[int, Outcome, Encoding, bytes]  # the first is the id of the call


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers: the node, its present run, and the session's name in both logs."""

    node: str
    instance_id: str
    session_id: str


class ServerSession(Session):
    """The callee's end of one stream.

    `handshake_deadline` is on the loop's clock, the durations in seconds; None: no limit.
    """

    def __init__(
        self,
        identity: Identity,
        authenticator: Authenticator,
        limits: Limits,
        *,
        handshake_deadline: float | None = None,
        idle_timeout: float | None = None,
        max_age: float | None = None,
    ) -> None:
        super().__init__(limits)
        self.identity = identity
        self.handshake_deadline = handshake_deadline
        self.idle_timeout = idle_timeout
        self.max_age = max_age
        self.claimed = ""  # the node that the caller says that it is
        self.peer = ""  # the same, once it has proved itself
        self.shard_key = ""
        self.pickle_allowed = False
        self.running: dict[int, IncomingCall] = {}
        self._arriving: dict[int, IncomingCall] = {}  # their payload is being assembled
        self.phase = Phase.HANDSHAKE
        self._authenticator = authenticator
        self._hello: pb.Hello | None = None
        self._challenge = pb.Challenge()
        self._targets: dict[int, Target] = {}
        self._replies: deque[Reply] = deque()
        self._reply_bytes = 0
        self._casts_open = 0
        self._casts_done = 0
        self._ready_at = 0.0
        self._leave_by: float | None = None

    def __repr__(self) -> str:
        return (
            f"<ServerSession {self.identity.session_id} from {self.peer or 'nobody yet'}"
            f" {self.phase.name}, {len(self.running)} calls running>"
        )

    # ------------------------------------------------------------ what the owner does

    @property
    def is_owed(self) -> bool:
        """Whether calls or casts have yet to end."""
        return bool(self.running or self._casts_open)

    def reply_all(self, items: Sequence[Ended]) -> None:
        """As `reply`, for all that have ended: the usual ones by hand, in one loop."""
        running, waiting = self.running, self._replies
        is_open = self.phase is not Phase.CLOSED
        size = casts = 0
        for call, outcome, head, buffers in items:
            if call.kind in CASTS:
                casts += 1
            elif is_open and not buffers and len(head) <= INLINE_BYTES and not call.cancelled:
                if running.pop(call.id, None) is not None:
                    size += len(head)
                    waiting.append((call.id, outcome, call.encoding, head))
            else:
                self.reply(call, outcome, head, buffers)
        self._casts_open -= casts
        self._casts_done += casts
        if size:
            self._reply_bytes += size
            self._look_at_unread()

    def reply(
        self, call: IncomingCall, outcome: Outcome, head: bytes, buffers: Sequence[Buffer] = ()
    ) -> None:
        """Answer a call, or say that a cast is over. A call that is not running is passed over."""
        if call.is_cast:
            self._casts_open -= 1
            self._casts_done += 1
            return
        if self.running.pop(call.id, None) is None or self.phase is Phase.CLOSED:
            return
        if call.cancelled:  # its caller forgot it long ago
            return
        size = len(head)
        if buffers or size > INLINE_BYTES:
            start = pb.TransferStart(encoding=call.encoding, outcome=outcome)
            transfer = Transfer(call.id, start, [head, *buffers], call)
            size = transfer.remaining
            self.transfers.add(transfer)
        else:
            self._replies.append((call.id, outcome, call.encoding, head))
        self._reply_bytes += size
        self._look_at_unread()

    def _look_at_unread(self) -> None:
        """End a session whose client does not read its replies."""
        unread = self._reply_bytes + REPLY_BYTES * (len(self._replies) + len(self.transfers))
        if unread > self.limits.max_unread_reply_bytes:
            self.limit_hit = "max_unread_reply_bytes"
            self.close(
                BadTCP(
                    "closed",
                    message="The caller does not read its replies: more than"
                    f" max_unread_reply_bytes ({self.limits.max_unread_reply_bytes}) wait.",
                )
            )

    def refuse(self, reason: str, message: str) -> None:
        """End the handshake with a reason."""
        go_away = pb.GoAway(reason=_REFUSALS[reason], message=message)
        self._frames.append(pb.ConnectResponse(go_away=go_away).SerializeToString())
        self.close(BadRPC(reason, "not_started", message))

    def leave(self, message: str, now: float) -> None:
        """Ask the client to begin nothing new here; what comes is still served."""
        if self.phase is Phase.READY:
            self.phase = Phase.LEAVING
            self._leave_by = now + LEAVE_SECONDS
            go_away = pb.GoAway(message=message)
            self._frames.append(pb.ConnectResponse(go_away=go_away).SerializeToString())

    @property
    def in_flight(self) -> bool:
        """Whether anything runs, arrives or is being answered."""
        return bool(
            self.running
            or self._casts_open
            or self._replies
            or len(self.transfers)
            or self._assemblies
        )

    # ------------------------------------------------------------ time

    def next_deadline(self) -> float | None:
        """When the handshake, the stream's idleness or age, or its leaving is to be looked at."""
        if self.phase is Phase.HANDSHAKE:
            return self.handshake_deadline
        times = []
        if self.phase is Phase.READY:
            if self.idle_timeout is not None and not self.in_flight:
                times.append(self.last_active + self.idle_timeout)
            if self.max_age is not None:
                times.append(self._ready_at + self.max_age)
        elif self.phase is Phase.LEAVING and self._leave_by is not None and not self.in_flight:
            times.append(self._leave_by)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """End a handshake that takes too long; leave a stream that is idle or old."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now + DEADLINE_SLACK:
            return
        if self.phase is Phase.HANDSHAKE:
            self.limit_hit = "handshake_timeout"
            self.close(BadTCP("closed", "not_started", "The handshake took too long."))
        elif self.phase is Phase.READY:
            self.leave("This stream was idle, or open, for as long as the node allows.", now)
        else:
            self._events.append(Drained())
            self._leave_by = None

    # ------------------------------------------------------------ receiving

    def _receive(self, frame: bytes, now: float) -> None:
        begin = frames.batch_begin(frame) if self.phase >= Phase.READY else 0
        if begin:
            self._take_calls(*frames.decode_calls(frame, begin), now)
            return
        request = frames.decode_request(frame)
        kind = request.WhichOneof("frame")
        if kind == "hello" and self._hello is None:
            self._challenge_client(request.hello)
        elif kind == "auth_proof" and self._hello is not None and self.phase is Phase.HANDSHAKE:
            self._welcome(request.auth_proof, self._hello, now)
        elif kind == "ping" and self.phase >= Phase.READY:
            pong = pb.Pong(nonce=request.ping.nonce)
            if len(self._frames) < MAX_CALLS_IN_FRAME:  # else it asks faster than it reads
                self._frames.append(pb.ConnectResponse(pong=pong).SerializeToString())
        elif kind == "go_away" and self.phase >= Phase.READY:
            self.phase = Phase.LEAVING
        elif kind == "calls" and self.phase >= Phase.READY:  # with a field of a later revision
            self._take_calls(request.calls, frames.chunk_of(request.calls), now)
        else:
            raise ProtocolError(f"the client sent {kind or 'nothing known'} out of turn")

    def _challenge_client(self, hello: pb.Hello) -> None:
        self.claimed = hello.node
        fault = self._authenticator.hello_fault(hello, self.identity.node)
        if fault is not None:
            raise ProtocolError(fault[1], fault[0])
        self._hello = hello
        self._challenge = pb.Challenge(
            revision=REVISION,
            node=self.identity.node,
            nonce=self._authenticator.new_nonce(),
            instance_id=self.identity.instance_id,
        )
        self._frames.append(pb.ConnectResponse(challenge=self._challenge).SerializeToString())

    def _welcome(self, proof: pb.AuthProof, hello: pb.Hello, now: float) -> None:
        expected = self._authenticator.client_proof(hello, self._challenge)
        if not self._authenticator.matches(expected, proof.mac):
            raise ProtocolError("the client does not know this node's cookie", "invalid_cookie")
        self._agree(proof)
        self.peer, self.shard_key = hello.node, hello.shard_key
        self.pickle_allowed = hello.want_pickle
        self.phase, self._ready_at = Phase.READY, now
        welcome = pb.Welcome(
            mac=self._authenticator.server_proof(hello, self._challenge),
            session_id=self.identity.session_id,
            max_frame_bytes=self.limits.max_frame_bytes,
            max_message_bytes=self.limits.max_message_bytes,
            max_calls=self.limits.max_calls,
            pickle_allowed=self.pickle_allowed,
            window_bytes=self.limits.window_bytes,
            cast_window=self.limits.cast_window,
            max_transfer_bytes=self.limits.max_transfer_bytes,
        )
        self._frames.append(pb.ConnectResponse(welcome=welcome).SerializeToString())
        self._events.append(Opened(self.identity.session_id, self.peer))

    def _break(self, error: ProtocolError) -> None:
        if error.reason in _REFUSALS and self.phase is Phase.HANDSHAKE:
            self.refuse(error.reason, str(error))
        else:
            # With TLS, its owner may find that the client's certificate is another node's.
            reason = error.reason if error.reason == "tls" else "corrupt_data"
            self.close(BadTCP(reason, "not_started", str(error)))

    def _end_all(self, failure: Failure) -> None:
        if self.running:
            self._events.append(CallsCancelled(list(self.running.values())))
        self._arriving.clear()
        self._replies.clear()

    def _take_calls(self, batch: pb.CallBatch, chunk: ChunkView | None, now: float) -> None:
        self.transfers.credit += batch.credit
        for target in batch.targets:
            if target.number >= MAX_TARGETS:
                raise ProtocolError(f"target number {target.number} is not below {MAX_TARGETS}")
            name = (target.module, target.function, target.module_version)
            self._targets[target.number] = name
        if batch.call_ids:
            self._take_small(batch, now)
        if chunk is not None:
            self._take_chunk(chunk, now)
        if batch.cancels:
            self._take_cancels(batch.cancels)

    def _take_small(self, batch: pb.CallBatch, now: float) -> None:
        ids, payloads = batch.call_ids, batch.payloads
        count = len(ids)
        numbers = frames.aligned(batch.call_targets, count, 0)
        timeouts = frames.aligned(batch.timeouts_us, count, 0)
        kinds = frames.aligned(batch.kinds, count, CALL)
        encodings = frames.aligned(batch.encodings, count, PICKLE)
        if len(payloads) != count:
            raise ProtocolError(f"{count} calls came with {len(payloads)} payloads")
        calls: list[IncomingCall] = []
        targets, running = self._targets, self.running
        casts = 0
        try:
            for call_id, number, timeout, kind, encoding, head in zip(
                ids, numbers, timeouts, kinds, encodings, payloads, strict=False
            ):
                target = targets.get(number)
                if target is None or not CALL <= kind <= BLOCK_CALL:
                    raise ProtocolError(f"call {call_id} has an unknown target or kind")
                deadline = now + timeout * 1e-6 if timeout else None
                call = IncomingCall(call_id, target, kind, encoding, deadline, head)
                if kind in ANSWERED:
                    if call_id in running:
                        raise ProtocolError(f"call {call_id} came twice")
                    running[call_id] = call
                else:
                    casts += 1
                calls.append(call)
        except ProtocolError:
            for call in calls:  # nobody was told of them
                if running.get(call.id) is call:
                    del running[call.id]
            raise
        self._casts_open += casts
        self._check_casts()
        self._events.append(CallsArrived(calls))

    def _take_cancels(self, ids: Sequence[int]) -> None:
        for call_id in ids:
            self._discard(call_id)
            self._arriving.pop(call_id, None)
            self._reply_bytes -= self.transfers.abandon(call_id)
        calls = [self.running[call_id] for call_id in ids if call_id in self.running]
        if calls:  # they keep running until the executor has answered for them
            self._events.append(CallsCancelled(calls))

    def _abandoned(self, call_id: int) -> None:
        super()._abandoned(call_id)
        self._arriving.pop(call_id, None)

    def _incoming(self, call_id: int, start: pb.TransferStart, now: float) -> IncomingCall:
        target = self._targets.get(start.target)
        if target is None or not CALL <= start.kind <= BLOCK_CALL:
            raise ProtocolError(f"call {call_id} has an unknown target or kind")
        deadline = now + start.timeout_us * 1e-6 if start.timeout_us else None
        return IncomingCall(call_id, target, start.kind, start.encoding, deadline, b"")

    def _begin_assembly(self, chunk: ChunkView, start: pb.TransferStart, now: float) -> bool:
        call = self._incoming(chunk.call_id, start, now)
        limit = self._limit_of(start)
        if limit is None:
            self._arriving[call.id] = call
            return True
        self._admit(call)
        bound = getattr(self.limits, limit)
        message = (
            f"The request has {sum(start.part_sizes)} bytes, over the node's {limit} ({bound})"
        )
        if limit == "max_message_bytes":
            refused = TransferRefused(call, "too_large", f"{message}.", limit)
        else:
            message += " together with those that are on their way: send it later."
            refused = TransferRefused(call, "overload", message, limit)
        self._events.append(refused)
        return False

    def _admit(self, call: IncomingCall) -> None:
        if call.is_cast:
            self._casts_open += 1
            self._check_casts()
        elif call.id in self.running:
            raise ProtocolError(f"call {call.id} came twice")
        else:
            self.running[call.id] = call

    def _assembled(self, call_id: int, assembly: Assembly, now: float) -> None:
        call = self._arriving.pop(call_id)
        call.head, call.buffers = assembly.parts()
        self._admit(call)
        self._events.append(CallsArrived([call]))

    @property
    def _cast_room(self) -> int:
        """The casts that the client could have out if it had heard of all that are over."""
        return self.limits.cast_window - self._casts_open if self._casts_open else 0

    def _check_casts(self) -> None:
        if self._casts_open + self._casts_done > self.limits.cast_window:
            self.limit_hit = "cast_window"
            raise ProtocolError("more casts came than were granted")

    # ------------------------------------------------------------ sending

    def _batch_to_send(self, now: float) -> bytes | None:
        if not (self._replies or self._casts_done or self.transfers.has_next or self.window.owes):
            return None
        batch = pb.ReplyBatch()
        replies = self._next_replies(batch)
        chunk = self._next_chunk(batch, now)
        tells = replies or chunk is not None
        # Casts are counted back in bulk, or on whatever frame goes anyway.
        if self._casts_done and (tells or self._casts_done * 4 >= self._cast_room):
            batch.casts_done, self._casts_done = self._casts_done, 0
            tells = True
        if self.window.owes or (tells and self.window.has_received):
            batch.credit = self.window.grant()
            tells = True
        return frames.encode_batch(batch, chunk) if tells else None

    def _next_replies(self, batch: pb.ReplyBatch) -> bool:
        waiting = self._replies
        if not waiting:
            return False
        ids: list[int] = []
        heads: list[bytes] = []
        outcomes: list[Outcome] = []
        encodings: list[Encoding] = []
        size, limit, plain = 0, self._inline_bytes, True
        while waiting and len(ids) < MAX_CALLS_IN_FRAME and size < limit:
            call_id, outcome, encoding, head = waiting.popleft()
            size += len(head)
            ids.append(call_id)
            heads.append(head)
            outcomes.append(outcome)
            encodings.append(encoding)
            if outcome != VALUE or encoding != PICKLE:
                plain = False
        self._reply_bytes -= size
        batch.call_ids.extend(ids)
        batch.payloads.extend(heads)
        if not plain:
            batch.outcomes.extend(frames.fill(outcomes, VALUE))
            batch.encodings.extend(frames.fill(encodings, PICKLE))
        return True

    def _chunk_left(
        self, owner: object, chunk: ChunkOut, batch: pb.CallBatch | pb.ReplyBatch, now: float
    ) -> None:
        self._reply_bytes -= sum(memoryview(piece).nbytes for piece in chunk.pieces)
