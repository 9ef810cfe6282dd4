"""Large payloads: cut and put together again, and what is refused while that goes on."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import QUICK

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.protocol.chunks import MAX_PARTS, Assembly, Transfer
from genrpc.protocol.events import ProtocolError
from genrpc.protocol.pending import Buffer


def transfer_of(*parts: Buffer) -> Transfer:
    return Transfer(7, pb.TransferStart(), parts, None)


buffers = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(memoryview),
    st.lists(st.floats(width=64), max_size=5).map(lambda v: memoryview(array("d", v))),
)


@QUICK
@given(st.binary(max_size=40), st.lists(buffers, max_size=6), st.data())
def test_payload_survives_chunks_of_any_size(
    head: bytes, parts: list[Buffer], data: st.DataObject
) -> None:
    transfer = transfer_of(head, *parts)
    first = transfer.take(data.draw(st.integers(1, 50)))
    assert first.start is not None
    assembly = Assembly(first.start)
    chunk = first
    while True:
        assembly.write(b"".join(chunk.pieces))
        if chunk.last:
            break
        chunk = transfer.take(data.draw(st.integers(1, 50)))
        assert chunk.start is None
        assert chunk.pieces

    found_head, found = assembly.parts()

    assert found_head == head
    assert [bytes(part) for part in found] == [memoryview(part).tobytes() for part in parts]
    assert [isinstance(part, bytearray) for part in found] == [
        not memoryview(part).readonly for part in parts
    ]
    assert transfer.remaining == assembly.remaining == 0


def test_chunk_is_never_larger_than_asked_for() -> None:
    transfer = transfer_of(b"abc", b"", b"defgh")
    taken = [transfer.take(4), transfer.take(4)]
    assert [b"".join(chunk.pieces) for chunk in taken] == [b"abcd", b"efgh"]
    assert [chunk.last for chunk in taken] == [False, True]


def test_transfer_has_started_once_a_chunk_was_taken() -> None:
    transfer = transfer_of(b"ab")
    assert not transfer.started
    transfer.take(1)
    assert transfer.started


def test_transfer_without_a_byte_is_one_chunk() -> None:
    chunk = transfer_of(b"", bytearray()).take(10)
    assert chunk.last
    assert chunk.pieces == []
    assert chunk.start == pb.TransferStart(part_sizes=[0, 0], writable_parts=[1])
    assembly = Assembly(chunk.start)
    assembly.write(b"")
    assert assembly.parts() == (b"", [bytearray()])


def test_head_is_bytes_even_if_it_was_announced_as_writable() -> None:
    assembly = Assembly(pb.TransferStart(part_sizes=[2], writable_parts=[0, 9]))
    assembly.write(b"ab")
    head, found = assembly.parts()
    assert type(head) is bytes
    assert (head, found) == (b"ab", [])


@pytest.mark.parametrize("count", [1, MAX_PARTS])
def test_transfer_of_a_lawful_number_of_parts_is_taken(count: int) -> None:
    assert len(Assembly(pb.TransferStart(part_sizes=[0] * count)).parts()[1]) == count - 1


@pytest.mark.parametrize("count", [0, MAX_PARTS + 1])
def test_transfer_of_another_number_of_parts_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match=f"{count} parts"):
        Assembly(pb.TransferStart(part_sizes=[0] * count))


def test_more_than_was_announced_is_refused() -> None:
    assembly = Assembly(pb.TransferStart(part_sizes=[2, 1]))
    assembly.write(b"abc")
    with pytest.raises(ProtocolError, match="more than it announced"):
        assembly.write(b"d")


def test_less_than_was_announced_is_refused() -> None:
    assembly = Assembly(pb.TransferStart(part_sizes=[2, 1]))
    assembly.write(b"ab")
    with pytest.raises(ProtocolError, match="before all of it"):
        assembly.parts()
