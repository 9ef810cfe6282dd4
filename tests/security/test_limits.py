"""Each limit, at the limit and one beyond it: the documented answer, and nobody else suffers."""

from __future__ import annotations

import json
import pickle
import queue
import threading
from collections.abc import Callable, Iterator

import pytest
from nodes import Nodes, is_at_rest
from raw_http2 import CONNECT, Line, headers, message
from raw_peer import RawPeer
from strangers import mute
from waiting import SECONDS, until

from genrpc import BadRPC, Node, Settings, erpc, rpc
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.protocol.chunks import PART_BYTES
from genrpc.protocol.server_session import REPLY_BYTES

HERE = __name__
GATE = threading.Event()
BEGUN: queue.SimpleQueue[object] = queue.SimpleQueue()


@pytest.fixture(autouse=True)
def gate() -> Iterator[None]:
    GATE.clear()
    while not BEGUN.empty():
        BEGUN.get()
    yield
    GATE.set()


def wait_at_gate(value: object = None) -> object:
    BEGUN.put(value)
    assert GATE.wait(SECONDS)
    return value


def echo(value: object) -> object:
    return value


def size(value: bytes) -> int:
    return len(value)


def zeros(count: int) -> bytes:
    return bytes(count)


def raw(node: Node, **options: object) -> RawPeer:
    return RawPeer(("127.0.0.1", node.port), target=node.name, **options)


def payload(*args: object) -> bytes:
    return pickle.dumps([list(args), {}], 5)


def hit(node: Node, limit: str) -> int:
    return node.statistics().get(f"limit_{limit}", 0)


def begun(count: int) -> None:
    for _ in range(count):
        BEGUN.get(timeout=SECONDS)


NAMED = [pb.Target(number=0, module=HERE, function="echo")]

# ---------------------------------------------------------------- what is said of each


def max_frame_bytes(nodes: Nodes) -> None:
    b = nodes.start("b", max_frame_bytes=65_536)
    peer = raw(b)
    assert peer.call(HERE, "echo", payload(1))
    for over in (0, 1):
        batch = pb.CallBatch(call_ids=[2], call_targets=[0], payloads=[payload(bytes(60_000))])
        frame = pb.ConnectRequest(calls=batch)
        batch_bytes = frame.ByteSize()
        batch.payloads[0] += b"x" * (65_536 + over - batch_bytes)  # behind the pickle's end
        frame = pb.ConnectRequest(calls=batch)
        assert frame.ByteSize() == 65_536 + over
        if not over:
            peer.send(frame)
            assert peer.reply_to(2)
        else:
            peer.send(frame)
            until(peer.is_over)
    until(lambda: not b._reception.streams)


def max_message_bytes(nodes: Nodes) -> None:
    b, a = nodes.start("b", max_message_bytes=200_000), nodes.start("a")
    overhead = len(payload(b"x" * 100_000)) - 100_000
    largest = 200_000 - overhead
    # As one part, by a peer that does not ask before.
    peer = raw(b)
    for over in (0, 1):
        data = payload(bytes(largest + over))
        assert len(data) == 200_000 + over
        start = pb.TransferStart(part_sizes=[len(data)])
        chunk = pb.Chunk(call_id=over + 1, start=start, data=data[:50_000])
        targets = [pb.Target(number=0, module=HERE, function="size")]
        peer.send_calls(targets=targets, chunk=chunk)
        if not over:
            peer.send_calls(chunk=pb.Chunk(call_id=1, data=data[50_000:], last=True))
            assert peer.reply_to(1) == pickle.dumps(largest, 5)
        else:
            failure = peer.reply_to(2)
            assert failure == BadRPC("too_large")
            assert failure.execution == "not_started"
    assert hit(b, "max_message_bytes") == 1
    # A caller of ours does not even send it; a result is held to the same.
    outcome = rpc.call(b.name, HERE, "size", [bytes(200_001)], via=a)
    assert (outcome, outcome.execution) == (BadRPC("too_large"), "not_started")
    c = nodes.start("c", max_message_bytes=200_000)
    assert rpc.call(b.name, HERE, "zeros", [150_000], via=c) == bytes(150_000)
    outcome = rpc.call(b.name, HERE, "zeros", [200_001], via=c)
    assert (outcome, outcome.execution) == (BadRPC("too_large"), "finished")
    assert hit(b, "max_message_bytes") == 2


def max_calls(nodes: Nodes) -> None:
    b, a, c = nodes.start("b", max_calls=3), nodes.start("a"), nodes.start("c")
    keys = [erpc.async_call((b.name, n), HERE, "wait_at_gate", [n], via=a) for n in range(3)]
    begun(3)
    outcome = rpc.call(b.name, HERE, "echo", [1], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert hit(b, "max_calls") == 1
    assert rpc.call(b.name, HERE, "echo", [1], via=c) == 1
    GATE.set()
    assert [key.result(SECONDS) for key in keys] == [0, 1, 2]
    until(lambda: rpc.call(b.name, HERE, "echo", [1], via=a) == 1)


def max_node_calls(nodes: Nodes) -> None:
    b, a, c = nodes.start("b", max_node_calls=2), nodes.start("a"), nodes.start("c")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", [1], via=each) for each in (a, c)]
    begun(2)
    outcome = rpc.call(b.name, HERE, "echo", [1], via=c)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert hit(b, "max_node_calls") == 1
    GATE.set()
    assert [key.result(SECONDS) for key in keys] == [1, 1]
    until(lambda: rpc.call(b.name, HERE, "echo", [1], via=c) == 1)


def max_workers(nodes: Nodes) -> None:
    b, a = nodes.start("b", max_workers=2), nodes.start("a")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", [n], via=a) for n in range(3)]
    begun(2)
    until(lambda: b.statistics()["queued"] == 1)
    assert b.statistics()["running"] == 2
    GATE.set()
    assert [key.result(SECONDS) for key in keys] == [0, 1, 2]


def max_connections(nodes: Nodes) -> None:
    b, a = nodes.start("b", max_connections=2), nodes.start("a")
    assert [rpc.call((b.name, n), HERE, "echo", [n], via=a) for n in (1, 2)] == [1, 2]
    outcome = rpc.call((b.name, 3), HERE, "echo", [3], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert hit(b, "max_connections") == 1
    assert rpc.call((b.name, 1), HERE, "echo", [1], via=a) == 1


def handshakes(limit: str) -> Callable[[Nodes], None]:
    def check(nodes: Nodes) -> None:
        b, a = nodes.start("b", handshake_timeout=SECONDS, **{limit: 3}), nodes.start("a")
        assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
        with Line(("127.0.0.1", b.port)).open() as line:
            for number in (1, 3, 5):
                line.send(headers(number, CONNECT))
            until(lambda: b._reception.handshakes == 3)
            assert hit(b, limit) == 0
            line.send(headers(7, CONNECT))
            line.wait_for([7])
            answer = pb.ConnectResponse.FromString(line.answer(7))
            assert answer.go_away.reason == pb.ERROR_REASON_OVERLOAD
            assert limit in answer.go_away.message
            assert hit(b, limit) == 1
            assert not line.ended & {1, 3, 5}
            assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
        until(lambda: b._reception.handshakes == 0)

    return check


def max_unread_reply_bytes(nodes: Nodes) -> None:
    one = len(pickle.dumps(bytes(1000), 5)) + REPLY_BYTES
    b, a = nodes.start("b", max_unread_reply_bytes=10 * one), nodes.start("a")
    # It takes the challenge and the welcome, and then nothing more.
    peer = raw(b, settings={"s4": 400})
    ids = iter(range(1, 1000))

    def ask(count: int) -> None:
        some = [next(ids) for _ in range(count)]
        payloads = [payload(1000)] * count
        targets = [pb.Target(number=0, module=HERE, function="zeros")]
        peer.send_calls(targets=targets, call_ids=some, call_targets=[0] * count, payloads=payloads)
        until(lambda: b._reception.running == 0)

    ask(1)  # fills what the peer takes
    ask(10)
    assert not peer.is_over()
    assert hit(b, "max_unread_reply_bytes") == 0
    ask(1)
    until(lambda: hit(b, "max_unread_reply_bytes") == 1)
    until(lambda: not b._reception.streams)  # also one that does not read its end
    assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1


def max_transfer_bytes(nodes: Nodes) -> None:
    room = 2 * (1000 + PART_BYTES)
    b, a = nodes.start("b", max_transfer_bytes=room), nodes.start("a")
    peer = raw(b)
    assert peer.welcome.max_transfer_bytes == room
    data = payload(bytes(1000))[:1000]
    start = pb.TransferStart(part_sizes=[1000])
    for number in (1, 2):
        peer.send_calls(targets=NAMED, chunk=pb.Chunk(call_id=number, start=start, data=data[:1]))
    peer.send_calls(chunk=pb.Chunk(call_id=3, start=pb.TransferStart(part_sizes=[1]), data=b"x"))
    failure = peer.reply_to(3)
    assert failure == BadRPC("overload")
    assert failure.execution == "not_started"
    assert hit(b, "max_transfer_bytes") == 1
    peer.send_calls(chunk=pb.Chunk(call_id=3, abandoned=True))
    peer.send_calls(chunk=pb.Chunk(call_id=1, data=data[1:], last=True))
    peer.send_calls(chunk=pb.Chunk(call_id=4, start=start, data=data[:1]))
    # Our own peers keep to it by themselves, whatever they have to send.
    large = [bytes([number]) * 100_000 for number in range(20)]
    keys = [erpc.async_call(b.name, HERE, "echo", [each], via=a) for each in large]
    assert [key.result(SECONDS) for key in keys] == large
    assert hit(b, "max_transfer_bytes") == 1


def max_depth(nodes: Nodes) -> None:
    b = nodes.start("b", max_depth=6)
    peer = raw(b)

    def nested(depth: int) -> bytes:
        value: list[object] = []
        for _ in range(depth - 1):
            value = [value]
        return json.dumps([[value], {}]).encode()

    encodings = [pb.PAYLOAD_ENCODING_JSON]
    assert peer.call(HERE, "echo", nested(6), encodings=encodings) == b"[" * 6 + b"]" * 6
    failure = peer.call(HERE, "echo", nested(7), encodings=encodings)
    assert failure == BadRPC("bad_arguments")
    assert hit(b, "max_depth") == 1


def window_bytes(nodes: Nodes) -> None:
    b, a = nodes.start("b", window_bytes=1000, chunk_bytes=1000), nodes.start("a")
    for over in (0, 1):
        peer = raw(b)
        data = payload(bytes(5000))
        start = pb.TransferStart(part_sizes=[len(data)])
        chunk = pb.Chunk(call_id=1, start=start, data=data[: 1000 + over])
        peer.send_calls(targets=NAMED, chunk=chunk)
        if not over:
            assert peer.hear().replies.credit > 0
            assert not peer.is_over()
        else:
            until(peer.is_over)
            assert b.statistics()["streams_corrupt_data"] == 1
        assert hit(b, "window_bytes") == over
    assert len(rpc.call(b.name, HERE, "echo", [bytes(300_000)], via=a)) == 300_000


def cast_window(nodes: Nodes) -> None:
    b, a = nodes.start("b", cast_window=5), nodes.start("a")
    for over in (0, 1):
        peer = raw(b)
        count = 5 + over
        peer.send_calls(
            targets=[pb.Target(number=0, module=HERE, function="wait_at_gate")],
            call_ids=range(1, count + 1),
            call_targets=[0] * count,
            payloads=[payload(1)] * count,
            kinds=[pb.CALL_KIND_CAST] * count,
        )
        if not over:
            begun(5)
            assert not peer.is_over()
        else:
            until(peer.is_over)
            assert BEGUN.empty()
            assert b.statistics()["streams_corrupt_data"] == 1
        assert hit(b, "cast_window") == over
    GATE.set()
    for number in range(50):  # our own peers wait for their turn
        rpc.cast(b.name, HERE, "wait_at_gate", [number], via=a)
    assert [BEGUN.get(timeout=SECONDS) for _ in range(50)] != []
    until(lambda: is_at_rest(b))


def queued(limit: str, at_most: int, argument: object) -> Callable[[Nodes], None]:
    def check(nodes: Nodes) -> None:
        a = nodes.start("a", connect_timeout=SECONDS, **{limit: at_most})
        with mute() as port:
            nodes.addresses["mute@127.0.0.1"] = ("127.0.0.1", port)
            for _ in range(3):
                assert rpc.cast("mute@127.0.0.1", HERE, "echo", [argument], via=a)
            rpc.call("mute@127.0.0.1", HERE, "echo", [1], 0.1, via=a)  # they are there by then
            assert a.statistics().get("casts_failed", 0) == 0
            assert rpc.cast("mute@127.0.0.1", HERE, "echo", [argument], via=a)
            until(lambda: a.statistics().get("casts_failed") == 1)
            until(lambda: hit(a, limit) == 1)

    return check


def handshake_timeout(nodes: Nodes) -> None:
    b, a = nodes.start("b", handshake_timeout=0.2), nodes.start("a")
    with Line(("127.0.0.1", b.port)).open() as line, Line(("127.0.0.1", b.port)) as silent:
        line.send(headers(1, CONNECT))
        line.wait_for([1])
        assert hit(b, "handshake_timeout") == 1
        # One that does not even begin with HTTP/2 is gRPC's to end.
        until(lambda: silent.receive(0.01) or silent.is_over)
        assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1


def connection_inactivity_timeout(nodes: Nodes) -> None:
    b, a = nodes.start("b", connection_inactivity_timeout=0.2), nodes.start("a")
    assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
    with Line(("127.0.0.1", b.port)).open() as line:
        until(lambda: not line.receive(0.01) and line.is_over)
    assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
    assert a.statistics()["streams_opened"] == 1


def server_inactivity_timeout(nodes: Nodes) -> None:
    b, a = nodes.start("b", server_inactivity_timeout=0.1), nodes.start("a")
    assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
    until(lambda: not b._reception.streams and not a.nodes())
    assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1


def max_connection_age(nodes: Nodes) -> None:
    b, a = nodes.start("b", max_connection_age=0.1), nodes.start("a")
    while b.statistics().get("streams_accepted", 0) < 3:
        assert rpc.call(b.name, HERE, "echo", [1], via=a) == 1
    with Line(("127.0.0.1", b.port)).open() as line:  # a connection for unary methods
        until(lambda: not line.receive(0.01) and line.is_over)


LIMITS: dict[str, Callable[[Nodes], None]] = {
    "max_frame_bytes": max_frame_bytes,
    "max_message_bytes": max_message_bytes,
    "max_calls": max_calls,
    "max_node_calls": max_node_calls,
    "max_workers": max_workers,
    "max_connections": max_connections,
    "max_pending_handshakes": handshakes("max_pending_handshakes"),
    "max_pending_handshakes_per_address": handshakes("max_pending_handshakes_per_address"),
    "max_unread_reply_bytes": max_unread_reply_bytes,
    "max_transfer_bytes": max_transfer_bytes,
    "max_depth": max_depth,
    "window_bytes": window_bytes,
    "cast_window": cast_window,
    "max_queued_casts": queued("max_queued_casts", 3, 1),
    "max_queued_bytes": queued("max_queued_bytes", 3 * len(payload(b"x" * 100)), b"x" * 100),
    "handshake_timeout": handshake_timeout,
    "connection_inactivity_timeout": connection_inactivity_timeout,
    "server_inactivity_timeout": server_inactivity_timeout,
    "max_connection_age": max_connection_age,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limit_has_its_answer_at_the_limit_and_beyond(nodes, limit, monkeypatch):
    monkeypatch.setattr("genrpc.inbound.PATIENCE_SECONDS", 2 * SECONDS)
    LIMITS[limit](nodes)


def test_every_limit_that_a_node_shows_is_tested_here():
    assert LIMITS.keys() == Settings().limits().keys()


def test_status_shows_every_limit(nodes):
    b, a = nodes.start("b", max_depth=6, max_connection_age=60.0), nodes.start("a")
    shown = dict(a.status_of(b.name).limits)
    assert {"server_inactivity_timeout": None, **shown} == b.settings.limits()


def test_welcome_tells_what_a_peer_must_keep_to(nodes):
    b = nodes.start("b")
    welcome = raw(b).welcome
    for name in (
        *("max_frame_bytes", "max_message_bytes", "max_calls", "max_transfer_bytes"),
        *("window_bytes", "cast_window"),
    ):
        assert getattr(welcome, name) == getattr(b.settings, name)


def test_stranger_that_does_not_read_its_refusal_leaves_nothing_behind(nodes, monkeypatch):
    monkeypatch.setattr("genrpc.transport.pump.LEAVE_SECONDS", 0.1)
    b = nodes.start("b")
    with Line(("127.0.0.1", b.port)).open(s4=0) as line:
        for number in range(1, 21, 2):
            hello = pb.Hello(
                revision_max=1,
                revision_min=1,
                node="stranger@127.0.0.1",
                target_node=b.name,
                nonce=bytes(32),
            )
            proof = pb.AuthProof(mac=bytes(32))
            line.send(headers(number, CONNECT))
            for said in (pb.ConnectRequest(hello=hello), pb.ConnectRequest(auth_proof=proof)):
                line.send(message(number, said.SerializeToString()))
        until(lambda: b.statistics().get("streams_invalid_cookie") == 10)
        until(lambda: not b._reception.streams)
