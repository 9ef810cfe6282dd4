"""Whose chunk goes next, and how much may be under way."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import QUICK

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.protocol.chunks import PART_BYTES, Transfer
from genrpc.protocol.outbox import Transfers, Window


def transfers(*sizes: int, chunk_bytes: int = 10, credit: int = 1000) -> Transfers:
    """Make transfers 1, 2, … of these sizes."""
    made = Transfers(chunk_bytes)
    made.credit = credit
    for number, size in enumerate(sizes, 1):
        made.add(Transfer(number, pb.TransferStart(), [bytes(size)], f"owner {number}"))
    return made


def taken(outbox: Transfers) -> list[tuple[int, int]]:
    """Take all chunks that may go: (id, bytes), or (id, -1) for an abandoned one."""
    found = []
    while (next_chunk := outbox.next_chunk()) is not None:
        chunk, transfer = next_chunk
        assert chunk.abandoned == (transfer is None)
        size = sum(memoryview(piece).nbytes for piece in chunk.pieces)
        found.append((chunk.call_id, -1 if chunk.abandoned else size))
    return found


def test_transfers_take_turns() -> None:
    assert taken(transfers(25, 10, 15)) == [(1, 10), (2, 10), (3, 10), (1, 10), (3, 5), (1, 5)]


def test_nothing_goes_without_credit() -> None:
    outbox = transfers(25, credit=13)
    assert taken(outbox) == [(1, 10), (1, 3)]
    assert outbox.credit == 0
    outbox.credit += 100
    assert taken(outbox) == [(1, 10), (1, 2)]
    assert len(outbox) == 0
    assert outbox.credit == 88


def test_only_as_many_begin_as_the_receiver_has_memory_for() -> None:
    outbox = transfers(25, 500, 5, 25)
    outbox.max_open_bytes = 2 * (25 + PART_BYTES)
    # What does not fit lets others by, and has its turn when it is alone.
    turns = [number for number, size in taken(outbox)]
    assert turns == [1, 3, 4, 1, 4, 1, 4] + [2] * 50


def test_abandoned_transfer_makes_room() -> None:
    outbox = transfers(25, 25, credit=10)
    outbox.max_open_bytes = 30
    assert taken(outbox) == [(1, 10)]
    outbox.credit = 100
    outbox.abandon(1)
    assert taken(outbox) == [(1, -1), (2, 10), (2, 10), (2, 5)]


@QUICK
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 1000), st.data())
def test_transfers_under_way_stay_within_the_receivers_memory(
    sizes: list[int], room: int, data: st.DataObject
) -> None:
    outbox = transfers(*sizes)
    outbox.max_open_bytes = room
    open_costs: dict[int, int] = {}
    seen = set()
    while (found := outbox.next_chunk()) is not None:
        chunk, _ = found
        if chunk.start is not None:
            open_costs[chunk.call_id] = sizes[chunk.call_id - 1] + PART_BYTES
            seen.add(chunk.call_id)
        assert len(open_costs) == 1 or sum(open_costs.values()) <= room
        if chunk.last or chunk.abandoned:
            del open_costs[chunk.call_id]
        elif data.draw(st.booleans()):
            outbox.abandon(chunk.call_id)
    assert seen == set(range(1, len(sizes) + 1))
    assert not open_costs


def test_abandoned_transfer_is_told_only_if_it_had_begun() -> None:
    outbox = transfers(25, 30, credit=10)
    taken(outbox)
    assert outbox.abandon(1) == 15
    assert outbox.abandon(2) == 30
    assert taken(outbox) == [(1, -1)]
    assert len(outbox) == 0


def test_abandoning_what_is_not_there_does_nothing() -> None:
    outbox = transfers(5)
    assert outbox.abandon(9) == 0
    assert taken(outbox) == [(1, 5)]
    assert outbox.abandon(1) == 0
    assert taken(outbox) == []


def test_cleared_outbox_is_empty() -> None:
    outbox = transfers(25, 30, credit=10)
    taken(outbox)
    outbox.abandon(1)
    outbox.clear()
    outbox.credit = 100
    assert taken(outbox) == []


@QUICK
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
    st.integers(1, 30),
    st.integers(1, 40),
)
def test_no_transfer_waits_for_more_than_one_chunk_of_each_other(
    sizes: list[int], chunk_bytes: int, credit: int
) -> None:
    outbox = transfers(*sizes, chunk_bytes=chunk_bytes, credit=credit)
    order = []
    while len(outbox):
        for number, size in taken(outbox):
            assert size <= chunk_bytes
            order.append(number)
        outbox.credit += credit
    for number in range(1, len(sizes) + 1):
        turns = [i for i, other in enumerate(order) if other == number]
        for begin, end in itertools.pairwise(turns):
            assert len(set(order[begin + 1 : end])) == end - begin - 1


# ---------------------------------------------------------------- the receiver's side


def test_window_takes_as_much_as_was_granted_and_not_a_byte_more() -> None:
    window = Window(10)
    assert window.receive(10)
    assert not window.receive(1)


def test_window_grants_back_what_came() -> None:
    window = Window(10)
    assert not window.has_received
    window.receive(4)
    assert window.has_received
    assert not window.owes
    window.receive(1)
    assert window.owes
    assert window.grant() == 5
    assert window.grant() == 0
    assert not window.owes
    assert window.receive(10)


@pytest.mark.parametrize("size", [1, 3, 1000])
@QUICK
@given(data=st.data())
def test_credit_never_exceeds_the_window_and_never_runs_dry(size: int, data: st.DataObject) -> None:
    window, credit, sent = Window(size), size, 0
    for _ in range(12):
        if not credit:
            assert window.owes
            credit += window.grant()
        piece = data.draw(st.integers(1, credit))
        credit -= piece
        sent += piece
        assert window.receive(piece)
        if data.draw(st.booleans()):
            credit += window.grant()
        assert credit <= size
