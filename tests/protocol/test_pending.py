"""Calls on their way, and when each is to be looked at."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import QUICK, make_call

from genrpc.errors import BadRPC
from genrpc.protocol.pending import (
    BLOCK_CALL,
    CALL,
    CAST,
    ENDED,
    INLINE_BYTES,
    ORDERED_CAST,
    PICKLE,
    WAITING,
    Buffer,
    Call,
    IncomingCall,
    Pending,
)


def call_with_id(number: int) -> Call:
    call = make_call()
    call.id = number
    return call


@pytest.mark.parametrize(
    ("head", "buffers", "large"),
    [
        (b"", (), False),
        (bytes(INLINE_BYTES), (), False),
        (bytes(INLINE_BYTES + 1), (), True),
        (b"", (b"",), True),
    ],
)
def test_call_is_large_over_the_inline_limit_or_with_buffers(
    head: bytes, buffers: Sequence[Buffer], large: bool
) -> None:
    assert make_call(head, buffers).is_large == large


def test_size_of_a_call_is_that_of_all_its_parts() -> None:
    assert make_call(b"abc", [b"de", bytearray(4), memoryview(b"12345678").cast("I")]).size == 17


@pytest.mark.parametrize(
    ("kind", "cast"), [(CALL, False), (BLOCK_CALL, False), (CAST, True), (ORDERED_CAST, True)]
)
def test_casts_are_told_from_calls(kind: int, cast: bool) -> None:
    assert make_call(kind=kind).is_cast == cast  # type: ignore[arg-type]  # a number of the enum
    incoming = IncomingCall(1, ("m", "f", ""), kind, PICKLE, None, b"")  # type: ignore[arg-type]
    assert incoming.is_cast == cast


def test_failed_call_lets_its_payload_go() -> None:
    call = make_call(b"abc", [b"d"])
    assert call.state is WAITING
    call.fail(BadRPC("timeout"))
    assert call.state is ENDED
    assert (call.failure, call.head, call.buffers) == (BadRPC("timeout"), b"", ())


def test_call_is_taken_out_once() -> None:
    pending = Pending()
    call = call_with_id(1)
    pending.add(call, None)
    assert len(pending) == 1
    assert list(pending) == [call]
    assert pending.pop(1) is call
    assert pending.pop(1) is None
    assert len(pending) == 0


def test_call_without_a_deadline_is_never_due() -> None:
    pending = Pending()
    call = call_with_id(1)
    pending.add(call, None)
    pending.recheck(call, None)
    assert pending.next_check() is None
    assert pending.due(1e9) == []


def test_call_is_due_at_its_time_and_not_again() -> None:
    pending = Pending()
    call = call_with_id(1)
    pending.add(call, 5.0)
    assert pending.due(4.9) == []
    assert pending.due(5.0) == [call]
    assert pending.due(6.0) == []
    pending.recheck(call, 7.0)
    assert pending.next_check() == 7.0
    assert pending.due(7.0) == [call]


def test_call_that_ended_is_not_due() -> None:
    pending = Pending()
    pending.add(call_with_id(1), 5.0)
    pending.pop(1)
    assert pending.due(5.0) == []


def test_entries_of_calls_that_ended_are_thrown_away() -> None:
    pending = Pending()
    for number in range(1000):
        pending.add(call_with_id(number), float(number))
        if number != 999:
            pending.pop(number)
    assert pending.next_check() == 999.0
    assert len(pending._heap) == 1


@QUICK
@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300), st.floats(0, 100))
def test_next_check_is_never_late(calls: list[tuple[float, bool]], now: float) -> None:
    pending = Pending()
    for number, (check_at, ended) in enumerate(calls):
        pending.add(call_with_id(number), check_at)
        if ended:
            pending.pop(number)
    waiting = sorted(check_at for check_at, ended in calls if not ended)
    next_check = pending.next_check()
    if waiting:
        assert next_check is not None
        assert next_check <= waiting[0]
    assert len(pending.due(now)) == sum(check_at <= now for check_at in waiting)
