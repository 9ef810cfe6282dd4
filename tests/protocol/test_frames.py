"""The layout of frames: what is made and read by hand is what protobuf makes and reads."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import QUICK

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.protocol import frames
from genrpc.protocol.events import ProtocolError
from genrpc.protocol.frames import ChunkOut, ChunkView

U64 = st.integers(0, 2**64 - 1)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_calls(frame: bytes) -> tuple[pb.CallBatch, ChunkView | None]:
    return frames.decode_calls(frame, frames.batch_begin(frame))


def read_replies(frame: bytes) -> tuple[pb.ReplyBatch, ChunkView | None]:
    return frames.decode_replies(frame, frames.batch_begin(frame))


def field(number: int, wire_type: int, content: bytes) -> bytes:
    """Make one field as it stands in a message."""
    if wire_type == BYTES:
        content = frames.varint(len(content)) + content
    return frames.varint(number << 3 | wire_type) + content


# ---------------------------------------------------------------- numbers


@QUICK
@given(U64)
def test_number_is_written_as_protobuf_writes_it(number: int) -> None:
    written = frames.varint(number)
    assert pb.Chunk.FromString(b"\x08" + written).call_id == number
    assert frames.read_varint(b"?" + written + b"?", 1) == (number, 1 + len(written))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
def test_number_that_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="ended inside a number"):
        frames.read_varint(data, 0)


def test_number_of_more_than_ten_bytes_is_refused() -> None:
    with pytest.raises(ProtocolError, match="longer than 64 bits"):
        frames.read_varint(b"\x80" * 10 + b"\x01", 0)


def test_number_beyond_64_bits_is_cut_as_protobuf_cuts_it() -> None:
    data = b"\xff" * 9 + b"\x7f"
    assert frames.read_varint(data, 0) == (pb.Chunk.FromString(b"\x08" + data).call_id, 10)


# ---------------------------------------------------------------- by hand and by protobuf

starts = st.builds(
    pb.TransferStart,
    part_sizes=st.lists(U64, max_size=3),
    writable_parts=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    target=st.integers(0, 5000),
    timeout_us=U64,
)
chunks_out = st.builds(
    ChunkOut,
    U64,
    st.lists(st.binary(max_size=200).flatmap(lambda b: st.sampled_from([b, memoryview(b)]))),
    st.none() | starts,
    st.booleans(),
    st.booleans(),
)
call_batches = st.builds(
    pb.CallBatch,
    call_ids=st.lists(U64, max_size=3),
    payloads=st.lists(st.binary(max_size=9), max_size=3),
    cancels=st.lists(U64, max_size=3),
    credit=U64,
)


@QUICK
@given(call_batches | st.none(), chunks_out | st.none())
def test_frame_made_by_hand_is_a_message(batch: pb.CallBatch | None, out: ChunkOut | None) -> None:
    frame = frames.encode_batch(batch, out)

    expected = pb.CallBatch()
    if batch is not None:
        expected.CopyFrom(batch)
    if out is not None:
        expected.chunk.call_id = out.call_id
        expected.chunk.data = b"".join(out.pieces)
        expected.chunk.last, expected.chunk.abandoned = out.last, out.abandoned
        if out.start is not None:
            expected.chunk.start.CopyFrom(out.start)
    assert frames.batch_begin(frame)
    assert frames.decode_request(frame) == pb.ConnectRequest(calls=expected)


def unknown(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """Fields of a later revision; the bytes of the fixed ones may look like an endless number."""
    return st.one_of(
        st.builds(lambda n, v: field(n, VARINT, frames.varint(v)), numbers, U64),
        st.builds(lambda n, v: field(n, BYTES, v), numbers, st.binary(max_size=20)),
        st.builds(lambda n, c: field(n, FIXED64, bytes([c]) * 8), numbers, st.integers(0, 255)),
        st.builds(lambda n, c: field(n, FIXED32, bytes([c]) * 4), numbers, st.integers(0, 255)),
    )


chunk_fields = st.one_of(
    U64.map(lambda v: field(1, VARINT, frames.varint(v))),
    starts.map(lambda v: field(2, BYTES, v.SerializeToString())),
    st.integers(0, 2).map(lambda v: field(3, VARINT, frames.varint(v))),
    st.binary(max_size=300).map(lambda v: field(4, BYTES, v)),
    st.integers(0, 2).map(lambda v: field(5, VARINT, frames.varint(v))),
    unknown(st.integers(6, 9) | st.integers(16, 2000)),
)
chunk_field = st.lists(chunk_fields, max_size=7).map(lambda v: field(1, BYTES, b"".join(v)))


def batch_fields(*known: int) -> st.SearchStrategy[bytes]:
    numbers = st.sampled_from(known)
    number_field = st.builds(lambda n, v: field(n, VARINT, frames.varint(v)), numbers, U64)
    return number_field | unknown(st.integers(20, 2000))


def bodies(*known: int) -> st.SearchStrategy[bytes]:
    """Contents of a batch: chunks (mostly one) and other fields, in any order."""
    one = st.tuples(chunk_field, st.lists(batch_fields(*known), max_size=3))
    return st.one_of(
        one.flatmap(lambda found: st.permutations([found[0], *found[1]])).map(b"".join),
        one.map(lambda found: b"".join([found[0], *found[1]])),
        st.lists(chunk_field | batch_fields(*known), max_size=6).map(b"".join),
    )


def as_view(chunk: pb.Chunk) -> ChunkView:
    start = chunk.start if chunk.HasField("start") else None
    return ChunkView(chunk.call_id, chunk.data, start, chunk.last, chunk.abandoned)


def assert_same_chunk(found: ChunkView | None, batch: pb.CallBatch | pb.ReplyBatch) -> None:
    if not batch.HasField("chunk"):
        assert found is None
        return
    assert found is not None
    found.data = bytes(found.data)
    if found.start is not None:  # equality of messages looks at unknown fields too
        found.start.DiscardUnknownFields()
    assert found == as_view(batch.chunk)


def without_chunk(batch: pb.CallBatch | pb.ReplyBatch) -> pb.CallBatch | pb.ReplyBatch:
    batch.ClearField("chunk")
    batch.DiscardUnknownFields()
    return batch


@QUICK
@given(bodies(3, 10))
def test_calls_are_read_as_by_protobuf_whatever_the_order_of_fields(body: bytes) -> None:
    frame = field(3, BYTES, body)
    expected = pb.ConnectRequest.FromString(frame).calls
    assert frames.batch_begin(frame)

    batch, chunk = read_calls(frame)

    assert_same_chunk(chunk, expected)
    assert without_chunk(batch) == without_chunk(expected)


def test_chunk_and_start_in_several_pieces_are_joined() -> None:
    pieces = [
        field(1, BYTES, field(2, BYTES, b"\x0a\x01\x05") + field(2, BYTES, b"\x0a\x01\x07")),
        field(10, VARINT, b"\x03"),
        field(1, BYTES, field(4, BYTES, b"data")),
    ]
    frame = field(3, BYTES, b"".join(pieces))
    batch, chunk = read_calls(frame)
    assert chunk == ChunkView(0, b"data", pb.TransferStart(part_sizes=[5, 7]))
    assert batch.credit == 3
    _, chunk = read_calls(field(3, BYTES, pieces[0]))
    assert chunk == ChunkView(0, b"", pb.TransferStart(part_sizes=[5, 7]))


@QUICK
@given(bodies(2, 6, 7))
def test_replies_are_read_as_by_protobuf_whatever_the_order_of_fields(body: bytes) -> None:
    frame = field(3, BYTES, body)
    expected = pb.ConnectResponse.FromString(frame).replies
    assert frames.batch_begin(frame)

    batch, chunk = read_replies(frame)

    assert_same_chunk(chunk, expected)
    assert without_chunk(batch) == without_chunk(expected)


@QUICK
@given(bodies(3, 10), unknown(st.integers(6, 2000)), st.booleans())
def test_frame_with_a_field_of_a_later_revision_is_left_to_protobuf(
    body: bytes, extra: bytes, first: bool
) -> None:
    frame = extra + field(3, BYTES, body) if first else field(3, BYTES, body) + extra
    assert not frames.batch_begin(frame)
    calls = frames.decode_request(frame).calls
    assert_same_chunk(frames.chunk_of(calls), calls)


def test_other_frames_are_no_batches() -> None:
    ping = pb.ConnectRequest(ping=pb.Ping(nonce=3)).SerializeToString()
    assert not frames.batch_begin(ping)
    assert not frames.batch_begin(b"")


# ---------------------------------------------------------------- broken frames


def whole_frame() -> bytes:
    start = pb.TransferStart(part_sizes=[10, 0], writable_parts=[1], timeout_us=10**6)
    return frames.encode_batch(
        pb.CallBatch(call_ids=[1], payloads=[b"x"]),
        ChunkOut(300, [b"0123456789"], start, last=True),
    )


def read(frame: bytes) -> object:
    """Read a frame of a client as a session does."""
    return read_calls(frame) if frames.batch_begin(frame) else frames.decode_request(frame)


@pytest.mark.parametrize("length", range(1, len(whole_frame())))
def test_frame_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        read(whole_frame()[:length])


CHUNK_FAULTS: Sequence[tuple[str, bytes]] = [
    ("its number runs into what follows", b"\x08\x80"),
    ("its data is longer", b"\x22\x05abc"),
    ("its data has no content", b"\x22\x01"),
    ("its start is longer", b"\x12\x03\x08"),
    ("its start cannot be decoded", b"\x12\x01\x08"),
    ("a field of a later revision cannot be decoded", b"\x3a\x05a"),
    ("number zero", b"\x00\x00"),
]


@pytest.mark.parametrize("fault", CHUNK_FAULTS, ids=[name for name, _ in CHUNK_FAULTS])
def test_broken_chunk_is_refused_as_by_protobuf(fault: tuple[str, bytes]) -> None:
    # What follows is enough for everything that reads on beyond the chunk's end.
    frame = field(3, BYTES, field(1, BYTES, fault[1]) + field(10, VARINT, b"\x08") * 4)
    with pytest.raises(ProtocolError):
        read_calls(frame)
    with pytest.raises(ProtocolError):
        frames.decode_request(frame)


def test_chunk_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(ProtocolError, match="longer than its frame"):
        read_calls(field(3, BYTES, b"\x0a\x05abc"))


def test_batch_that_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        read_replies(field(3, BYTES, b"\x12\x09a"))


@QUICK
@given(st.binary(max_size=60).flatmap(lambda b: st.sampled_from([b, field(3, BYTES, b)])))
def test_random_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read(data)


# ---------------------------------------------------------------- parallel arrays


def test_array_of_defaults_is_left_out() -> None:
    assert frames.fill([0, 0], 0) == ()
    assert frames.fill([0, 1], 0) == [0, 1]
    assert frames.fill([], 0) == ()


def test_empty_array_stands_for_defaults() -> None:
    assert frames.aligned([], 3, 7) == (7, 7, 7)
    assert frames.aligned([1, 2], 2, 7) == [1, 2]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_array_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match="2 entries"):
        frames.aligned([1, 2], count, 0)
