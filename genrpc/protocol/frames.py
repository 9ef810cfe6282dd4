"""The layout of frames: bytes ↔ messages.

Frames are the protobuf messages ConnectRequest and ConnectResponse of the published proto.
Small ones are made and read by protobuf. A chunk is put together and taken apart by hand:
protobuf would copy its megabytes twice more (286 against 2.4 microseconds for 256 KiB).
By hand or not, the bytes are the same message, and any order of fields is understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

from .events import ProtocolError
from .pending import Buffer

Batch = TypeVar("Batch", pb.CallBatch, pb.ReplyBatch)
Parsed = TypeVar("Parsed", bound=Message)
Number = TypeVar("Number", bound=int)

# Tags of the fields that are written by hand: (number << 3) | wire type.
_BATCH = b"\x1a"  # ConnectRequest.calls and ConnectResponse.replies: 3, length-delimited
_CHUNK = b"\x0a"  # CallBatch.chunk and ReplyBatch.chunk: 1, length-delimited
_CHUNK_START = b"\x12"
_CHUNK_LAST = b"\x18\x01"
_CHUNK_DATA = b"\x22"
_CHUNK_FIELDS = frozenset((0x08, 0x12, 0x18, 0x22, 0x28))


@dataclass(slots=True)
class ChunkView:
    """A chunk as it was received; `data` may be a view into the frame."""

    call_id: int
    data: Buffer = field(repr=False)
    start: pb.TransferStart | None = None
    last: bool = False
    abandoned: bool = False


@dataclass(slots=True)
class ChunkOut:
    """A chunk to send: the pieces of its data are joined into the frame, once."""

    call_id: int
    pieces: list[Buffer] = field(default_factory=list, repr=False)
    start: pb.TransferStart | None = None
    last: bool = False
    abandoned: bool = False


def varint(value: int) -> bytes:
    """Encode an unsigned number as protobuf does."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Read an unsigned number; returns it and the position after it.

    What goes beyond 64 bits is cut off, as protobuf does.
    """
    shift = result = 0
    while shift < 70:
        try:
            byte = data[position]
        except IndexError:
            raise ProtocolError("a frame ended inside a number") from None
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    raise ProtocolError("a number in a frame is longer than 64 bits")


def encode_batch(batch: pb.CallBatch | pb.ReplyBatch | None, chunk: ChunkOut | None) -> bytes:
    """Make the frame that carries `batch` and `chunk`, either of which may be missing."""
    body = batch.SerializeToString() if batch is not None else b""
    if chunk is None:
        return b"".join((_BATCH, varint(len(body)), body))
    head = [b"\x08", varint(chunk.call_id)]
    if chunk.start is not None:
        start = chunk.start.SerializeToString()
        head += (_CHUNK_START, varint(len(start)), start)
    if chunk.last:
        head.append(_CHUNK_LAST)
    if chunk.abandoned:
        head.append(b"\x28\x01")
    data_size = sum(memoryview(piece).nbytes for piece in chunk.pieces)
    head += (_CHUNK_DATA, varint(data_size))
    chunk_head = b"".join(head)
    chunk_size = varint(len(chunk_head) + data_size)
    size = len(_CHUNK) + len(chunk_size) + len(chunk_head) + data_size + len(body)
    return b"".join((_BATCH, varint(size), _CHUNK, chunk_size, chunk_head, *chunk.pieces, body))


def batch_begin(frame: bytes) -> int:
    """Where the batch begins in a frame of calls or replies and nothing besides; else 0."""
    if frame[:1] != _BATCH:
        return 0
    size, begin = read_varint(frame, 1)
    return begin if begin + size == len(frame) else 0


def decode_calls(frame: bytes, begin: int) -> tuple[pb.CallBatch, ChunkView | None]:
    """Read the calls that begin in a frame as `batch_begin` says."""
    return _decode_batch(frame, begin, pb.CallBatch)


def decode_replies(frame: bytes, begin: int) -> tuple[pb.ReplyBatch, ChunkView | None]:
    """Read the replies that begin in a frame as `batch_begin` says."""
    return _decode_batch(frame, begin, pb.ReplyBatch)


def _decode_batch(frame: bytes, begin: int, kind: type[Batch]) -> tuple[Batch, ChunkView | None]:
    chunk, position = None, begin
    if frame[begin : begin + 1] == _CHUNK:
        size, chunk_begin = read_varint(frame, begin + 1)
        position = chunk_begin + size
        if position > len(frame):
            raise ProtocolError("a chunk is longer than its frame")
        chunk = _read_chunk(frame, chunk_begin, position)
    batch = _parsed(kind, frame[position:])
    if chunk is None:
        chunk = chunk_of(batch)
    elif batch.HasField("chunk"):  # in several pieces: protobuf joins them
        batch = _parsed(kind, frame[begin:])
        chunk = chunk_of(batch)
    return batch, chunk


def chunk_of(batch: pb.CallBatch | pb.ReplyBatch) -> ChunkView | None:
    """Take the chunk from a batch that protobuf has read."""
    return _chunk_view(batch.chunk) if batch.HasField("chunk") else None


def _chunk_view(chunk: pb.Chunk) -> ChunkView:
    start = chunk.start if chunk.HasField("start") else None
    return ChunkView(chunk.call_id, chunk.data, start, chunk.last, chunk.abandoned)


def _read_chunk(frame: bytes, begin: int, end: int) -> ChunkView:
    """Read the chunk's few fields by hand, its data as a view."""
    chunk, position = ChunkView(0, b""), begin
    while position < end:
        tag = frame[position]
        if tag not in _CHUNK_FIELDS:  # of a later revision: protobuf knows how to pass it over
            return _chunk_view(_parsed(pb.Chunk, frame[begin:end]))
        value, position = read_varint(frame, position + 1)
        if tag == 0x08:
            chunk.call_id = value
        elif tag == 0x18:
            chunk.last = bool(value)
        elif tag == 0x28:
            chunk.abandoned = bool(value)
        else:
            field_begin, position = position, position + value
            if tag == 0x22:
                chunk.data = memoryview(frame)[field_begin:position]
            else:
                start = _parsed(pb.TransferStart, frame[field_begin:position])
                if chunk.start is None:
                    chunk.start = start
                else:  # it came in several pieces, which are joined
                    chunk.start.MergeFrom(start)
    if position != end:
        raise ProtocolError("a field is longer than its chunk")
    return chunk


def decode_request(frame: bytes) -> pb.ConnectRequest:
    """Read any frame of a client by protobuf alone."""
    return _parsed(pb.ConnectRequest, frame)


def decode_response(frame: bytes) -> pb.ConnectResponse:
    """Read any frame of a server by protobuf alone."""
    return _parsed(pb.ConnectResponse, frame)


def _parsed(kind: type[Parsed], data: bytes) -> Parsed:
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise ProtocolError(f"a frame cannot be decoded: {exc}") from None


def fill(values: Sequence[Number], default: Number) -> Sequence[Number]:
    """Leave an array out of the frame if all its entries are the default."""
    return () if values.count(default) == len(values) else values


def aligned(array: Sequence[Number], count: int, default: Number) -> Sequence[Number]:
    """An array of a frame, of which an empty one stands for `count` defaults."""
    if not array:
        return (default,) * count
    if len(array) != count:
        raise ProtocolError(f"an array of a frame has {len(array)} entries for {count} calls")
    return array
