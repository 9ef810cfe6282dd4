"""What both ends of a peer stream have in common: limits, chunks, credit, the way frames go.

A session exists before its stream does and outlives none. Its owner, on the loop thread:

    session.receive(frame, now)     for each frame that comes
    session.frame_to_send(now)      whenever the stream can take a frame; None: nothing to say
    session.tick(now)               when the time that next_deadline() gave has come
    session.close(failure)          when the stream has ended
    session.take_events()           after any of these

`phase` only ever grows. A broken protocol ends the session, by an event like any other end.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP

from .chunks import Assembly, cost
from .events import Closed, Event, ProtocolError
from .frames import ChunkOut, ChunkView
from .outbox import MAX_INLINE_IN_FRAME, MAX_OPEN_BYTES, Transfers, Window

Failure = BadRPC | BadTCP

REVISION = 1
"""The only revision of the protocol so far."""

MAX_HANDSHAKE_FRAME = 16 * 1024
"""Bytes; nothing larger is looked at before the handshake has succeeded."""

MAX_TARGETS = 4096
"""Targets that the two ends remember for a stream; numbers are used anew after that."""

MAX_DISCARDED = 65_536
"""Transfers that were refused or given up and whose end the sender may still owe."""

DEADLINE_SLACK = 0.001
"""Seconds by which a timer of an event loop may come early (its clock's resolution)."""


class Phase(enum.IntEnum):
    """How far a session has come."""

    CONNECTING = 0
    """There is no stream yet."""
    HANDSHAKE = 1
    """The stream is open and neither side has proved anything yet."""
    READY = 2
    """Both sides have proved that they know the cookie."""
    LEAVING = 3
    """Nothing new begins; what is in flight goes on."""
    CLOSED = 4
    """Over; frames that are left may still be sent."""


class Authenticator(Protocol):
    """How the two sides prove to each other that they know the cookie."""

    def new_nonce(self) -> bytes:
        """32 random bytes."""

    def hello_fault(self, hello: pb.Hello, node: str) -> tuple[str, str] | None:
        """What is wrong with a client's hello: the reason and a sentence; None: nothing."""

    def challenge_fault(self, hello: pb.Hello, challenge: pb.Challenge) -> tuple[str, str] | None:
        """What is wrong with a server's challenge."""

    def client_proof(self, hello: pb.Hello, challenge: pb.Challenge) -> bytes:
        """The client's proof for this pair."""

    def server_proof(self, hello: pb.Hello, challenge: pb.Challenge) -> bytes:
        """The server's proof for this pair."""

    def matches(self, expected: bytes, given: bytes) -> bool:
        """Compare two proofs in constant time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this side accepts, and how it sends. Bytes, but for the counts."""

    max_frame_bytes: int = 4 * 1024 * 1024
    max_message_bytes: int = 512 * 1024 * 1024
    chunk_bytes: int = 512 * 1024
    window_bytes: int = 2 * 1024 * 1024
    max_calls: int = 10_000
    cast_window: int = 16_384
    max_queued_casts: int = 1_000_000
    max_queued_bytes: int = 1024 * 1024 * 1024
    max_unread_reply_bytes: int = 1024 * 1024 * 1024
    max_transfer_bytes: int = MAX_OPEN_BYTES


class Session(ABC):
    """The half of a session that does not depend on which end it is."""

    def __init__(self, limits: Limits) -> None:
        self.phase = Phase.CONNECTING
        self.limits = limits
        self.peer_max_message_bytes = limits.max_message_bytes
        self.transfers = Transfers(limits.chunk_bytes)
        self.window = Window(limits.window_bytes)
        self.limit_hit = ""  # the limit for which the session was ended
        self.last_active = 0.0
        self._inline_bytes = MAX_INLINE_IN_FRAME
        self._assemblies: dict[int, Assembly] = {}
        self._assembly_bytes = 0
        self._discarded: set[int] = set()  # transfers whose further chunks are passed over
        self._frames: deque[bytes] = deque()  # whole frames that go before all else
        self._events: list[Event] = []

    # ------------------------------------------------------------ what the owner does

    def take_events(self) -> list[Event]:
        """What happened since this was last asked."""
        events, self._events = self._events, []
        return events

    def receive(self, frame: bytes, now: float) -> None:
        """Take in a frame."""
        if self.phase is Phase.CLOSED:
            return
        self.last_active = now
        try:
            if self.phase < Phase.READY and len(frame) > MAX_HANDSHAKE_FRAME:
                raise ProtocolError(f"a frame of {len(frame)} bytes came before the handshake")
            self._receive(frame, now)
        except ProtocolError as exc:
            self._break(exc)

    def frame_to_send(self, now: float) -> bytes | None:
        """The next frame, which must now be written; None while there is nothing to say."""
        if self._frames:
            return self._frames.popleft()
        if self.phase is Phase.READY or self.phase is Phase.LEAVING:
            frame = self._batch_to_send(now)
            if frame is not None:
                self.last_active = now
            return frame
        return None

    @property
    def wants_to_send(self) -> bool:
        """Whether frames are left that must go even though the session is over."""
        return bool(self._frames)

    def close(self, failure: Failure | None) -> None:
        """End the session: the stream has ended, or is to end."""
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.CLOSED
            self.transfers.clear()
            self._assemblies.clear()
            self._assembly_bytes = 0
            self._end_all(failure or BadTCP("closed"))
            self._events.append(Closed(failure))

    @abstractmethod
    def tick(self, now: float) -> None:
        """Let the time pass: what is overdue ends."""

    @abstractmethod
    def next_deadline(self) -> float | None:
        """When `tick` is wanted next; may be early, never late."""

    # ------------------------------------------------------------ what the ends fill in

    @abstractmethod
    def _receive(self, frame: bytes, now: float) -> None: ...

    @abstractmethod
    def _batch_to_send(self, now: float) -> bytes | None: ...

    @abstractmethod
    def _break(self, error: ProtocolError) -> None: ...

    @abstractmethod
    def _end_all(self, failure: Failure) -> None: ...

    @abstractmethod
    def _begin_assembly(self, chunk: ChunkView, start: pb.TransferStart, now: float) -> bool: ...

    @abstractmethod
    def _assembled(self, call_id: int, assembly: Assembly, now: float) -> None: ...

    # ------------------------------------------------------------ chunks

    def _agree(self, told: pb.AuthProof | pb.Welcome) -> None:
        """Take over what the other side accepts; 0 stands for the defaults of the protocol."""
        defaults = Limits()
        max_frame_bytes = told.max_frame_bytes
        self.transfers.credit = told.window_bytes or defaults.window_bytes
        self.transfers.max_open_bytes = told.max_transfer_bytes or defaults.max_transfer_bytes
        frame = max_frame_bytes or defaults.max_frame_bytes
        # A frame may carry both. What is left is for the last small payload, which may go over
        # the limit, and for ids, targets and part sizes.
        self.transfers.chunk_bytes = max(1, min(self.limits.chunk_bytes, frame // 2))
        self._inline_bytes = max(1, min(MAX_INLINE_IN_FRAME, frame // 8))
        self.peer_max_message_bytes = told.max_message_bytes or defaults.max_message_bytes

    def _take_chunk(self, chunk: ChunkView, now: float) -> None:
        size = memoryview(chunk.data).nbytes
        if not self.window.receive(size):
            self.limit_hit = "window_bytes"
            raise ProtocolError("more chunk data came than was granted")
        if chunk.call_id in self._discarded:
            if chunk.last or chunk.abandoned:
                self._discarded.discard(chunk.call_id)
            return
        if chunk.start is not None:
            if chunk.call_id in self._assemblies:
                raise ProtocolError(f"transfer {chunk.call_id} began twice")
            if not self._begin_assembly(chunk, chunk.start, now):
                if not chunk.last:
                    self._pass_over(chunk.call_id)
                return
            begun = self._assemblies[chunk.call_id] = Assembly(chunk.start)
            self._assembly_bytes += begun.cost
        assembly = self._assemblies.get(chunk.call_id)
        if assembly is None:
            raise ProtocolError(f"a chunk of transfer {chunk.call_id}, which never began")
        if chunk.abandoned:
            self._abandoned(chunk.call_id)
            return
        assembly.write(chunk.data)
        if chunk.last:
            self._forget(chunk.call_id)
            self._assembled(chunk.call_id, assembly, now)

    def _abandoned(self, call_id: int) -> None:
        """Forget a transfer that its sender gave up."""
        self._forget(call_id)

    def _discard(self, call_id: int) -> None:
        """Let go of a transfer that nobody wants any more; the rest of it is passed over."""
        if self._forget(call_id):
            self._pass_over(call_id)

    def _forget(self, call_id: int) -> bool:
        """Let go of a transfer's memory; False if there is none."""
        assembly = self._assemblies.pop(call_id, None)
        if assembly is None:
            return False
        self._assembly_bytes -= assembly.cost
        return True

    def _pass_over(self, call_id: int) -> None:
        if len(self._discarded) >= MAX_DISCARDED:
            raise ProtocolError(f"{MAX_DISCARDED} transfers that were refused have not ended")
        self._discarded.add(call_id)

    def _limit_of(self, start: pb.TransferStart) -> str | None:
        """Name the limit that a transfer would break if it began now."""
        sizes = list(start.part_sizes)
        if sum(sizes) > self.limits.max_message_bytes:
            return "max_message_bytes"
        open_bytes = self._assembly_bytes
        if open_bytes and open_bytes + cost(sizes) > self.limits.max_transfer_bytes:
            return "max_transfer_bytes"
        return None

    def _next_chunk(self, batch: pb.CallBatch | pb.ReplyBatch, now: float) -> ChunkOut | None:
        found = self.transfers.next_chunk()
        if found is None:
            return None
        chunk, transfer = found
        if transfer is not None:
            self._chunk_left(transfer.owner, chunk, batch, now)
        return chunk

    @abstractmethod
    def _chunk_left(
        self, owner: object, chunk: ChunkOut, batch: pb.CallBatch | pb.ReplyBatch, now: float
    ) -> None: ...
