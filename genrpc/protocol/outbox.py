"""What goes into the next frame: everything small that waits, and at most one chunk.

Never wait to fill a frame; the completion of one write starts the next, so a lone call
leaves at once and what piled up meanwhile leaves together (gRPC's cost is per message).
Transfers take turns, a chunk each, within the byte credit that the receiver granted, so
that neither small calls nor other transfers wait for somebody's megabytes; only so many
are begun as the receiver has memory for.
"""

from __future__ import annotations

from collections import deque

from .chunks import Transfer
from .frames import ChunkOut

MAX_CALLS_IN_FRAME = 2048
MAX_INLINE_IN_FRAME = 512 * 1024
"""Bytes of small payloads after which a frame is full."""

MAX_OPEN_BYTES = 1024 * 1024 * 1024
"""Bytes of transfers that may be under way to a receiver that does not say how many it takes."""


class Transfers:
    """The payloads on their way out of one session, in turns, within its credit."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.credit = 0
        self.max_open_bytes = MAX_OPEN_BYTES
        self._open_bytes = 0  # of those that were begun
        self._waiting: deque[Transfer] = deque()
        self._abandoned: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_next(self) -> bool:
        """Whether `next_chunk` would give one."""
        return bool(self._abandoned or (self._waiting and self.credit > 0))

    def add(self, transfer: Transfer) -> None:
        """Let the transfer take part in the turns."""
        self._waiting.append(transfer)

    def abandon(self, transfer_id: int) -> int:
        """Give a transfer up, and tell the receiver if it knows of it; returns what was left."""
        for transfer in self._waiting:
            if transfer.id == transfer_id:
                self._waiting.remove(transfer)
                if transfer.started:
                    self._abandoned.append(transfer_id)
                    self._open_bytes -= transfer.cost
                return transfer.remaining
        return 0

    def next_chunk(self) -> tuple[ChunkOut, Transfer | None] | None:
        """The chunk that goes next, with its transfer; None if there is none, or no credit."""
        if self._abandoned:
            return ChunkOut(self._abandoned.popleft(), abandoned=True), None
        if not self._waiting or self.credit <= 0:
            return None
        transfer = self._waiting.popleft()
        # Ends, for only one that was begun holds the others up.
        while not transfer.started and not self._may_begin(transfer):
            self._waiting.append(transfer)
            transfer = self._waiting.popleft()
        if not transfer.started:
            self._open_bytes += transfer.cost
        chunk = transfer.take(min(self.chunk_bytes, self.credit))
        sent = sum(memoryview(piece).nbytes for piece in chunk.pieces)
        self.credit -= sent
        if chunk.last:
            self._open_bytes -= transfer.cost
        else:
            self._waiting.append(transfer)
        return chunk, transfer

    def _may_begin(self, transfer: Transfer) -> bool:
        return not self._open_bytes or self._open_bytes + transfer.cost <= self.max_open_bytes

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._abandoned.clear()
        self._open_bytes = 0


class Window:
    """The receiving side of the byte credit: what came is granted back, half a window at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._received = 0
        self._open = size

    def receive(self, size: int) -> bool:
        """Count chunk data that came; False if it is more than was granted."""
        self._open -= size
        self._received += size
        return self._open >= 0

    @property
    def has_received(self) -> bool:
        """Whether there is anything to grant back."""
        return self._received > 0

    @property
    def owes(self) -> bool:
        """Whether enough came to be worth a grant."""
        return self._received * 2 >= self.size

    def grant(self) -> int:
        """The bytes to grant now; rides on whatever frame goes next."""
        granted, self._received = self._received, 0
        self._open += granted
        return granted
