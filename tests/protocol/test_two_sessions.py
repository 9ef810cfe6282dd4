"""Both ends of a stream, joined: what one says, the other understands, whatever comes between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import (
    ALPHA,
    BETA,
    QUICK,
    Wire,
    failure_of,
    make_call,
    make_client,
    make_server,
)

from genrpc.errors import BadRPC, BadTCP
from genrpc.protocol import frames
from genrpc.protocol.events import CallsArrived, CallsCancelled, CallsReturned, Closed, Opened
from genrpc.protocol.pending import (
    BLOCK_CALL,
    CALL,
    CAST,
    ENDED,
    INLINE_BYTES,
    ORDERED_CAST,
    Buffer,
    Call,
)
from genrpc.protocol.session import MAX_HANDSHAKE_FRAME, MAX_TARGETS, Limits, Phase

Step = Callable[[], object]

MIB = 1024 * 1024
TINY = Limits(chunk_bytes=7, window_bytes=20, cast_window=4)


def joined(limits: Limits | None = None) -> Wire:
    return Wire(make_client(limits), make_server(limits)).open()


# ---------------------------------------------------------------- the handshake


def test_both_sides_learn_of_each_other() -> None:
    wire = joined()
    assert wire.client_events == [Opened("s-1", BETA)]
    assert wire.server_events == [Opened("s-1", ALPHA)]


def test_client_with_another_cookie_runs_nothing() -> None:
    wire = Wire(make_client(cookie=b"another cookie than the server's"))
    call = make_call()
    wire.submit(call)
    wire.open()
    assert wire.server_events == [Closed(BadRPC("invalid_cookie"))]
    assert wire.ended == [call]
    assert failure_of(call) == (BadRPC("invalid_cookie"), "not_started")


def test_client_that_reached_another_node_is_told() -> None:
    wire = Wire(make_client(target_node="gamma@127.0.0.1"))
    call = make_call()
    wire.submit(call)
    wire.open()
    assert wire.server_events == [Closed(BadRPC("badnode"))]
    assert failure_of(call) == (BadRPC("badnode"), "not_started")


def test_calls_made_before_the_stream_go_when_it_is_open() -> None:
    wire = Wire()
    call = make_call(b"early")
    wire.submit(call)
    wire.open()
    (incoming,) = wire.arrived
    wire.reply(incoming, b"answer")
    wire.settle()
    assert wire.ended == [call]
    assert call.head == b"answer"


def test_cancelled_call_is_cancelled_there() -> None:
    wire = joined()
    call = make_call()
    wire.submit(call)
    wire.settle()
    wire.client.cancel(call)
    wire.settle()
    assert wire.server_events[-1] == CallsCancelled(wire.arrived)


def test_server_that_leaves_serves_what_it_has() -> None:
    wire = joined()
    known, late = make_call(), make_call()
    wire.submit(known)
    wire.settle()
    wire.server.leave("Bye.", 0.0)
    wire.submit(late)
    wire.server_sends()
    wire.client_receives()
    assert wire.client_events[-1] == CallsReturned([late])
    wire.reply(wire.arrived[0], b"answer")
    wire.settle()
    assert wire.ended == [known]
    assert [call.id for call in wire.arrived] == [known.id]


# ---------------------------------------------------------------- payloads

parts = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(bytearray),
    st.binary(max_size=60).map(memoryview),
)
payloads = st.tuples(st.binary(max_size=60), st.lists(parts, max_size=4))
limits = st.builds(
    Limits,
    chunk_bytes=st.integers(1, 50),
    window_bytes=st.integers(1, 80),
    max_frame_bytes=st.integers(2, 100) | st.just(4 * MIB),
    cast_window=st.integers(1, 9),
)


def content(head: bytes, buffers: list[Buffer]) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """What of a payload must be the same at the other end: its bytes, and what is writable."""
    views = [memoryview(buffer) for buffer in buffers]
    return bytes(head), [(bytes(view), view.readonly) for view in views]


@QUICK
@given(st.lists(payloads, min_size=1, max_size=5), limits, limits, st.data())
def test_any_payload_survives_any_interleaving(
    sent: list[tuple[bytes, list[Buffer]]],
    client_limits: Limits,
    server_limits: Limits,
    data: st.DataObject,
) -> None:
    wire = Wire(make_client(client_limits), make_server(server_limits)).open()
    made = [make_call(head, buffers) for head, buffers in sent]
    unsent = made[::-1]

    def submit_one() -> None:
        if unsent:
            wire.submit(unsent.pop())

    frames_go = [wire.client_sends, wire.server_receives, wire.server_sends, wire.client_receives]
    steps: list[Step] = [submit_one, *frames_go, lambda: echo(wire)]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=40)):
        step()
    while unsent:
        submit_one()
    for _ in made:
        wire.settle()
        echo(wire)
    wire.settle()

    assert sorted(wire.ended, key=lambda call: call.id) == made
    for call, (head, buffers) in zip(made, sent, strict=True):
        assert call.failure is None
        assert content(call.head, list(call.buffers)) == content(head, buffers)
    assert not wire.client.in_flight
    assert not wire.server.in_flight


def echo(wire: Wire) -> None:
    """Answer every running call with its own arguments."""
    for call in list(wire.server.running.values()):
        wire.reply(call, call.head, call.buffers)


# ---------------------------------------------------------------- order


def walk(wire: Wire, made: list[Call], data: st.DataObject) -> None:
    """Submit calls while frames go as they like, then let all go; casts end soon."""
    steps: list[Step] = [wire.client_sends, wire.server_receives, wire.server_sends]
    steps += [wire.client_receives, lambda: finish_casts(wire)]
    some_steps = st.lists(st.sampled_from(steps), max_size=6)
    for call in made:
        wire.submit(call)
        for step in data.draw(some_steps):
            step()
    for _ in made:
        wire.settle()
        finish_casts(wire)
    wire.settle()


def finish_casts(wire: Wire) -> None:
    for call in wire.arrived:
        if call.is_cast and call.task is None:
            call.task = "over"
            wire.reply(call)


@QUICK
@given(st.integers(1, 15), st.data())
def test_small_calls_arrive_in_the_order_they_were_made(count: int, data: st.DataObject) -> None:
    wire = joined(TINY)
    made = [make_call(bytes([i]), kind=CALL if i % 3 else BLOCK_CALL) for i in range(count)]
    walk(wire, made, data)
    assert [call.head for call in wire.arrived] == [bytes([i]) for i in range(count)]


@QUICK
@given(st.lists(st.integers(0, 40), min_size=1, max_size=10), st.data())
def test_ordered_casts_arrive_in_order_whatever_their_sizes(
    sizes: list[int], data: st.DataObject
) -> None:
    wire = joined(TINY)
    made = []
    for number, size in enumerate(sizes):
        buffers = [bytes(size)] if size > 10 else []  # with a buffer, it travels in chunks
        made.append(make_call(bytes([number]), buffers, kind=ORDERED_CAST))
        made.append(make_call(b"other", buffers[::-1], kind=CAST))
    walk(wire, made, data)
    ordered = [call.head[0] for call in wire.arrived if call.kind == ORDERED_CAST]
    assert ordered == list(range(len(sizes)))
    assert len(wire.arrived) == len(made)
    assert not wire.client.in_flight


@QUICK
@given(st.integers(1, 40), st.integers(1, 5), st.data())
def test_never_more_casts_are_open_than_the_window_allows(
    count: int, window: int, data: st.DataObject
) -> None:
    wire = joined(Limits(cast_window=window))
    for _ in range(count):
        wire.submit(make_call(kind=CAST))
    while len(wire.arrived) < count or wire.client.in_flight:
        wire.settle()
        running = [call for call in wire.arrived if call.task is None]
        assert 0 < len(running) <= window
        for call in running[: data.draw(st.integers(1, len(running)))]:
            call.task = "over"
            wire.reply(call)
        if len(wire.arrived) == count and all(call.task for call in wire.arrived):
            wire.settle()
            break
    assert not wire.client.in_flight


# ---------------------------------------------------------------- credit


def chunk_bytes(frame: bytes) -> int:
    """Bytes of chunk data in a frame of either side."""
    if not frames.batch_begin(frame):
        return 0
    _, chunk = frames.decode_calls(
        frame, frames.batch_begin(frame)
    )  # the chunk is the same field in both batches
    return memoryview(chunk.data).nbytes if chunk is not None else 0


@QUICK
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.integers(1, 30),
    st.integers(1, 60),
    st.data(),
)
def test_never_more_is_under_way_than_the_window(
    sizes: list[int], chunk: int, window: int, data: st.DataObject
) -> None:
    wire = joined(Limits(chunk_bytes=chunk, window_bytes=window))
    for size in sizes:
        wire.submit(make_call(b"", [bytes(size)]))
    steps = [wire.client_sends, wire.server_receives, wire.server_sends, wire.client_receives]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=60)):
        step()
        echo(wire)
        assert sum(map(chunk_bytes, wire.to_server)) <= window
        assert sum(map(chunk_bytes, wire.to_client)) <= window
        assert 0 <= wire.client.transfers.credit <= window
        assert 0 <= wire.server.transfers.credit <= window
    for _ in sizes:
        wire.settle()
        echo(wire)
    wire.settle()
    assert len(wire.ended) == len(sizes)
    assert wire.client.phase is wire.server.phase is Phase.READY


def test_small_calls_do_not_wait_for_large_data() -> None:
    wire = joined(Limits(chunk_bytes=1000, window_bytes=2000))
    wire.submit(make_call(bytes(MIB)))
    wire.settle()
    wire.submit(make_call(b"small"))
    assert wire.client_sends()
    assert wire.server_receives()
    assert wire.arrived[-1].head == b"small"


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("large", [False, True])
def test_targets_are_never_mixed_when_their_numbers_wrap(large: bool) -> None:
    wire = joined()
    count = 2 * MAX_TARGETS + 100
    names = [(f"m{i}", f"f{i % 7}", str(i % 3)) for i in range(count)]
    made = [
        # Two of three were named before, lately or long ago; some are large amid small ones.
        make_call(
            b"", [b"x"] if large and i % 50 == 0 else [], target=names[i // 7 if i % 3 else i]
        )
        for i in range(count)
    ]
    for begin in range(0, count, 3000):
        wire.submit(*made[begin : begin + 3000])
        wire.settle()
    wire.settle()
    assert len(wire.arrived) == count
    assert {c.id: c.target for c in wire.arrived} == {c.id: c.target for c in made}


@QUICK
@given(st.lists(st.integers(0, 6000), min_size=1, max_size=30), st.data())
def test_any_use_of_many_targets_arrives_as_it_was_meant(
    numbers: list[int], data: st.DataObject
) -> None:
    wire = joined()
    # As after thousands of calls: the table is nearly full.
    for i in range(data.draw(st.integers(2030, 2047))):
        wire.client._targets[f"m{i}", "f", ""] = i
        wire.server._targets[i] = (f"m{i}", "f", "")
    for number in numbers:
        wire.submit(make_call(b"", [b""] * (number % 2), target=(f"m{number}", "f", "")))
        if data.draw(st.booleans()):
            wire.client_sends()
    wire.settle()
    arrived = sorted(wire.arrived, key=lambda call: call.id)
    assert [call.target[0] for call in arrived] == [f"m{number}" for number in numbers]


# ---------------------------------------------------------------- sizes of frames


@pytest.mark.parametrize(
    ("max_frame", "chunk", "name_bytes"),
    [(4 * MIB, MIB // 2, 255), (4 * MIB, 64 * MIB, 200), (MIB, MIB // 2, 30), (MIB // 2, MIB, 5)],
)
@pytest.mark.parametrize("payload", [0, 200, INLINE_BYTES])
def test_no_frame_is_larger_than_the_other_side_accepts(
    max_frame: int, chunk: int, name_bytes: int, payload: int
) -> None:
    limits = Limits(max_frame_bytes=max_frame, chunk_bytes=chunk, window_bytes=64 * MIB)
    wire = joined(limits)
    wire.submit(make_call(b"", [bytes(100)] * 5000 + [bytes(3 * MIB)]))
    for number in range(2100):
        name = f"{number:0{name_bytes}}"
        wire.submit(make_call(bytes(payload), target=(name, name, name), deadline=1e12))
    largest = 0
    while wire.client_sends():
        largest = max(largest, len(wire.to_server[-1]))
        wire.server_receives()
    assert len(wire.arrived) == 2101
    for call in wire.arrived:
        wire.reply(call, bytes(payload) if call.id > 1 else b"", call.buffers)
    while wire.server_sends():
        largest = max(largest, len(wire.to_client[-1]))
        wire.client_receives()
    assert len(wire.ended) == 2101
    assert largest <= max_frame


def test_cancels_of_a_flood_stay_within_a_frame() -> None:
    wire = joined()
    made = [make_call() for _ in range(5000)]
    wire.submit(*made)
    wire.settle()
    for call in made:
        wire.client.cancel(call)
    while wire.client_sends():
        assert len(wire.to_server[-1]) < 64 * 1024
        wire.server_receives()
    cancelled = [e for e in wire.server_events if isinstance(e, CallsCancelled)]
    assert sum(len(event.calls) for event in cancelled) == 5000


# ---------------------------------------------------------------- broken and hostile frames

MUTABLE = replace(TINY, max_message_bytes=10_000)
REASONS = {"corrupt_data", "invalid_cookie", "badnode", "overload", "draining", "closed"}


def mutate(frame: bytes, data: st.DataObject) -> bytes:
    """Break a frame in one of the ways that frames break."""
    at = data.draw(st.integers(0, len(frame)))
    rest = frame[at:]
    return data.draw(
        st.one_of(
            st.integers(1, 255).map(
                lambda flip: frame[:at] + bytes([rest[0] ^ flip]) + rest[1:] if rest else frame
            ),
            st.just(frame[:at]),
            st.binary(min_size=1, max_size=12).map(lambda more: frame[:at] + more + rest),
            st.integers(1, 5).map(lambda cut: frame[:at] + rest[cut:]),
            st.just(frame + frame),
            st.binary(max_size=40),
            st.just(bytes(MAX_HANDSHAKE_FRAME + 1)),
        )
    )


def assert_ended_well(wire: Wire, made: list[Call]) -> None:
    """Whatever came: each call ended once, each side closed once and told it last."""
    wire.client.close(None)
    wire.server.close(None)
    wire.collect()
    ended = wire.ended
    for event in wire.client_events:
        if isinstance(event, CallsReturned):
            ended += event.calls
    calls = [call for call in made if not call.is_cast]
    assert sorted(call.id for call in ended if not call.is_cast) == [call.id for call in calls]
    for events in (wire.client_events, wire.server_events):
        ends = [event for event in events if isinstance(event, Closed)]
        assert ends == events[-1:]
        failure = ends[0].failure
        assert failure is None or failure.reason in REASONS
        opened = [i for i, event in enumerate(events) if isinstance(event, Opened)]
        arrived = [i for i, event in enumerate(events) if isinstance(event, CallsArrived)]
        assert not arrived or opened[0] < arrived[0]


@QUICK
@given(st.integers(0, 14), st.booleans(), st.data())
def test_broken_frame_at_any_time_ends_the_session_or_does_no_harm(
    when: int, to_server: bool, data: st.DataObject
) -> None:
    wire = Wire(make_client(MUTABLE), make_server(MUTABLE))
    made = [
        make_call(b"small"),
        make_call(b"large", [bytes(30), bytearray(4)]),
        make_call(b"cast", kind=CAST),
        make_call(b"ordered", [bytes(30)], kind=ORDERED_CAST),
    ]
    wire.submit(*made)
    wire.client.opened(0.0)
    queue = wire.to_server if to_server else wire.to_client
    seen = 0
    for _ in range(40):
        wire.client_sends()
        wire.server_sends()
        if queue:
            seen += 1
            if seen == when + 1:
                queue[0] = mutate(queue[0], data)
        wire.server_receives()
        wire.client_receives()
        echo(wire)
        finish_casts(wire)
    assert_ended_well(wire, made)


@QUICK
@given(st.lists(st.binary(max_size=30), max_size=5), st.booleans())
def test_nothing_arrives_by_random_frames_before_the_handshake(
    noise: list[bytes], challenged: bool
) -> None:
    wire = Wire()
    if challenged:
        wire.client.opened(0.0)
        wire.client_sends()
        wire.server_receives()
    genuine = frames.encode_batch(None, None)
    for frame in [*noise, genuine]:
        wire.server.receive(frame, 0.0)
    wire.collect()
    assert wire.server_events == [Closed(BadTCP("corrupt_data"))] or (
        # By chance a lawful hello for another node.
        wire.server_events == [Closed(BadRPC("badnode"))]
    )
    assert wire.arrived == []


@QUICK
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_random_frames_after_the_handshake_end_the_session_or_do_no_harm(
    noise: list[bytes], as_batch: bool, leaving: bool
) -> None:
    wire = joined(MUTABLE)
    made = [make_call(), make_call(b"", [bytes(50)])]
    wire.submit(*made)
    wire.settle()
    if leaving:
        wire.server.leave("Bye.", 0.0)
        wire.settle()
    for content in noise:
        frame = b"\x1a" + frames.varint(len(content)) + content if as_batch else content
        wire.server.receive(frame, 0.0)
        wire.client.receive(frame, 0.0)
    assert_ended_well(wire, made)


def test_ended_calls_hold_no_payload() -> None:
    wire = joined()
    call = make_call(b"args", [bytes(10)])
    wire.submit(call)
    wire.client.close(None)
    assert call.state is ENDED
    assert (call.head, call.buffers) == (b"", ())
