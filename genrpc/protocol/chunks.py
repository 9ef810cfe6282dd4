"""Large payloads: cut into chunks by the sender, put together by the receiver.

A payload is a list of parts, the encoded value first and its out-of-band buffers after
it. A chunk carries the next bytes of the parts, without regard to where one part ends.
The receiver writes each chunk where it belongs as it comes, so that no step of its work
grows with the payload: what is read-only becomes `bytes`, the rest a `bytearray`.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Collection, Sequence

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

from .events import ProtocolError
from .frames import ChunkOut
from .pending import Buffer

MAX_PARTS = 16_384
"""Parts of one transfer: the encoded value and its out-of-band buffers."""

PART_BYTES = 256
"""What a part counts against max_transfer_bytes beside its size: what holds it."""


def cost(part_sizes: Collection[int]) -> int:
    """Bytes of max_transfer_bytes that a transfer takes as long as it is under way."""
    return sum(part_sizes) + PART_BYTES * len(part_sizes)


class Transfer:
    """A payload on its way out. `owner` is whatever the session wants to find it by."""

    __slots__ = ("_offset", "_parts", "_start", "cost", "id", "owner", "remaining")

    def __init__(
        self, id: int, start: pb.TransferStart, parts: Sequence[Buffer], owner: object
    ) -> None:
        self.id = id
        self.owner = owner
        views = [memoryview(part).cast("B") for part in parts]
        sizes = [view.nbytes for view in views]
        start.part_sizes.extend(sizes)
        start.writable_parts.extend([i for i, view in enumerate(views) if not view.readonly])
        self.remaining = sum(sizes)
        self.cost = cost(sizes)
        self._start: pb.TransferStart | None = start
        self._parts = [view for view in reversed(views) if view.nbytes]
        self._offset = 0

    @property
    def started(self) -> bool:
        """Whether a chunk was taken."""
        return self._start is None

    def take(self, size: int) -> ChunkOut:
        """Cut off the next chunk, of at most `size` bytes."""
        chunk = ChunkOut(self.id, start=self._start)
        self._start = None
        while size and self._parts:
            part = self._parts[-1]
            piece = part[self._offset : self._offset + size]
            chunk.pieces.append(piece)
            size -= piece.nbytes
            self.remaining -= piece.nbytes
            self._offset += piece.nbytes
            if self._offset == part.nbytes:
                self._parts.pop()
                self._offset = 0
        chunk.last = not self.remaining
        return chunk


# With NULL for the contents, these two of Python's C API leave them as they are, to be written
# over before anybody reads them. `bytes(size)` fills them with zeros, with the interpreter lock
# held: 10 MB in 0.3 to 0.6 ms, a tenth of what receiving them costs.
_bytes_of = ctypes.pythonapi.PyBytes_FromStringAndSize
_bytearray_of = ctypes.pythonapi.PyByteArray_FromStringAndSize
for _maker in (_bytes_of, _bytearray_of):
    _maker.restype, _maker.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)


def _unfilled(size: int) -> bytes:
    made: bytes = _bytes_of(None, size)
    return made


def _unfilled_array(size: int) -> bytearray:
    made: bytearray = _bytearray_of(None, size)
    return made


class Assembly:
    """A payload on its way in; its memory is reserved when its first chunk has come."""

    __slots__ = ("_fill", "_parts", "_sizes", "cost", "remaining", "start")

    def __init__(self, start: pb.TransferStart) -> None:
        self.start = start
        self._sizes = list(start.part_sizes)
        if not 0 < len(self._sizes) <= MAX_PARTS:
            raise ProtocolError(f"a transfer of {len(self._sizes)} parts")
        self.remaining = sum(self._sizes)
        self.cost = cost(self._sizes)
        writable = set(start.writable_parts)
        # BytesIO on a fresh bytes object writes into it and gives it back without a copy
        # (it is the only one who refers to it): real bytes, and no step at the end that
        # costs as much as the payload is large.
        self._parts: list[io.BytesIO | bytearray] = [
            _unfilled_array(size) if number in writable else io.BytesIO(_unfilled(size))
            for number, size in enumerate(self._sizes)
        ]
        self._fill = [0, 0]  # number of the part that comes next, bytes of it that came

    def write(self, data: Buffer) -> None:
        """Put the next bytes where they belong."""
        view = memoryview(data)
        if view.nbytes > self.remaining:
            raise ProtocolError("a transfer brought more than it announced")
        self.remaining -= view.nbytes
        number, offset = self._fill
        while view.nbytes:
            room = self._sizes[number] - offset
            piece = view[:room]
            part = self._parts[number]
            if isinstance(part, bytearray):
                part[offset : offset + piece.nbytes] = piece
            else:
                part.write(piece)
            view = view[piece.nbytes :]
            offset += piece.nbytes
            if offset == self._sizes[number]:
                number, offset = number + 1, 0
        self._fill = [number, offset]

    def parts(self) -> tuple[bytes, list[Buffer]]:
        """The payload: its encoded value and its buffers."""
        if self.remaining:
            raise ProtocolError("a transfer ended before all of it came")
        done: list[Buffer] = [
            part if isinstance(part, bytearray) else part.getvalue() for part in self._parts
        ]
        return bytes(done[0]), done[1:]
