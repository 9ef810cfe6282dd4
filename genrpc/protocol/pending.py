"""Calls on their way: what the caller waits for, what the callee has to run.

`Call` is a call as its caller's session sees it, `IncomingCall` as the callee's
does, `Pending` the calls of one session that wait for an outcome, with their
deadlines. The fields of a call are set by one side at a time: by the caller's
thread until it hands the call over, by the loop thread until the call has
ended, and by the caller again. Nothing here locks.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

if TYPE_CHECKING:
    from typing import TypeAlias

    from genrpc.errors import BadRPC, BadTCP

    Kind: TypeAlias = pb.CallKind.ValueType
    Encoding: TypeAlias = pb.PayloadEncoding.ValueType
    Outcome: TypeAlias = pb.OutcomeKind.ValueType
    Ended: TypeAlias = "tuple[IncomingCall, Outcome, bytes, Sequence[Buffer]]"
    """What became of a call: the call, what its payload is, and the payload."""

Buffer = bytes | bytearray | memoryview
Target = tuple[str, str, str]  # module, function, version ("" = any)

CALL = pb.CALL_KIND_UNSPECIFIED
CAST = pb.CALL_KIND_CAST
ORDERED_CAST = pb.CALL_KIND_ORDERED_CAST
BLOCK_CALL = pb.CALL_KIND_BLOCK_CALL

ANSWERED = (CALL, BLOCK_CALL)
"""The kinds for whose reply somebody waits."""
CASTS = (CAST, ORDERED_CAST)

VALUE = pb.OUTCOME_KIND_UNSPECIFIED
ERROR = pb.OUTCOME_KIND_ERROR
THROWN = pb.OUTCOME_KIND_THROWN

PICKLE = pb.PAYLOAD_ENCODING_UNSPECIFIED

INLINE_BYTES = 64 * 1024
"""A payload up to this size stands in a frame's arrays; a larger one travels in chunks."""


def payload_size(head: bytes, buffers: Sequence[Buffer]) -> int:
    """Bytes of an encoded value with its out-of-band buffers."""
    return len(head) + sum(memoryview(buffer).nbytes for buffer in buffers)


class State(enum.IntEnum):
    """How far a call has come, as its caller knows."""

    WAITING = 0
    """Nothing of it was handed to the transport: it has certainly not started."""
    SENDING = 1
    """Some of its chunks were handed over, not the last: it has not started either."""
    SENT = 2
    """All of it was handed over: it may have started."""
    ENDED = 3
    """It has its outcome."""


# Plain names: an attribute of an enum class costs a look-up in a hot loop.
WAITING, SENDING, SENT, ENDED = State


class Call:
    """One outgoing call or cast.

    `deadline` and `send_timeout` are seconds (the first on the loop's clock, the second a
    duration), None for no limit. When the call ends, either `failure` is set, or `outcome`
    says what `head` and `buffers`, then the reply's, are; then `wake` is called, once, on
    the loop thread.
    """

    __slots__ = (
        "buffers",
        "deadline",
        "encoding",
        "failure",
        "head",
        "id",
        "kind",
        "outcome",
        "progress_at",
        "send_timeout",
        "size",
        "state",
        "target",
        "wake",
    )

    def __init__(
        self,
        target: Target,
        head: bytes,
        buffers: Sequence[Buffer] = (),
        kind: Kind = CALL,
        encoding: Encoding = PICKLE,
        deadline: float | None = None,
        send_timeout: float | None = None,
        wake: Callable[[], object] | None = None,
    ) -> None:
        self.target = target
        self.head = head
        self.buffers = buffers
        self.kind = kind
        self.encoding = encoding
        self.deadline = deadline
        self.send_timeout = send_timeout
        if wake is not None:  # else a subclass has a method of that name
            self.wake = wake
        self.id = 0
        self.state = WAITING
        self.outcome: Outcome = VALUE
        self.failure: BadRPC | BadTCP | None = None
        self.progress_at = 0.0
        self.size = len(head) if not buffers else payload_size(head, buffers)

    @property
    def is_cast(self) -> bool:
        """Whether nobody waits for a reply."""
        return self.kind == CAST or self.kind == ORDERED_CAST

    @property
    def is_large(self) -> bool:
        """Whether it travels in chunks."""
        return bool(self.buffers) or self.size > INLINE_BYTES

    def fail(self, failure: BadRPC | BadTCP) -> None:
        """End without a reply; the payload is let go."""
        self.state = ENDED
        self.failure = failure
        self.head = b""
        self.buffers = ()


class Sink(Protocol):
    """Where an executor puts what became of a call; safe for any thread."""

    def post(self, item: Ended, /) -> None:
        """Hand it over."""


class IncomingCall:
    """One call or cast that arrived: what to run, and what became of it.

    Made on the loop thread, then handed to the executor. `cancelled` may be set at any time
    by the loop thread and read by the worker. Who takes the call in sets `sink`, `lane` (what
    must run one after the other has an equal one) and `max_reply_bytes`.
    """

    __slots__ = (
        "buffers",
        "cancelled",
        "deadline",
        "encoding",
        "head",
        "id",
        "kind",
        "lane",
        "max_reply_bytes",
        "sink",
        "target",
        "task",
    )

    def __init__(
        self,
        id: int,
        target: Target,
        kind: Kind,
        encoding: Encoding,
        deadline: float | None,
        head: bytes,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        self.id = id
        self.target = target
        self.kind = kind
        self.encoding = encoding
        self.deadline = deadline
        self.head = head
        self.buffers = buffers
        self.cancelled = False
        self.sink: Sink | None = None
        self.lane: Hashable = None
        self.max_reply_bytes = 0
        self.task: object = None  # the executor's: what runs it now

    @property
    def is_cast(self) -> bool:
        """Whether nobody waits for a reply."""
        return self.kind == CAST or self.kind == ORDERED_CAST


class Pending:
    """The calls of one session that have no outcome yet, with their deadlines.

    Deadlines lie in a heap whose entries outlive their calls; it is rebuilt when more than
    half of it is stale, so that a call costs amortised constant time and no entry is kept
    for long (asyncio does the same with its timers).
    """

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self.calls.values()))

    def add(self, call: Call, check_at: float | None) -> None:
        """Hold `call` under its id; look at it again at `check_at` (None: never)."""
        self.calls[call.id] = call
        if check_at is not None:
            heapq.heappush(self._heap, (check_at, call.id))

    def pop(self, call_id: int) -> Call | None:
        """Take the call out, if it is still here."""
        return self.calls.pop(call_id, None)

    def next_check(self) -> float | None:
        """When the earliest call is to be looked at; may be early, never late."""
        heap = self._heap
        if len(heap) > 2 * len(self.calls) + 64:
            self._heap = heap = [entry for entry in heap if entry[1] in self.calls]
            heapq.heapify(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Call]:
        """The calls whose time to be looked at has come; put them back with `recheck`."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            call = self.calls.get(heapq.heappop(self._heap)[1])
            if call is not None:
                found.append(call)
        return found

    def recheck(self, call: Call, check_at: float | None) -> None:
        """Look at the call again later."""
        if check_at is not None:
            heapq.heappush(self._heap, (check_at, call.id))
