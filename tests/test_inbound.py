"""What a node does with the calls that come in: admits, refuses, counts, and ends cleanly."""

import contextlib
import gc
import logging
import queue
import threading
import weakref

import grpc
import pytest
from nodes import is_at_rest
from waiting import SECONDS, until

from genrpc import BadRPC, BadTCP, erpc, rpc
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.transport import stream as stream_module

HERE = __name__
GATE = threading.Event()
BEGUN = queue.SimpleQueue()
NOTES = []


@pytest.fixture(autouse=True)
def gate():
    GATE.clear()
    NOTES.clear()
    while not BEGUN.empty():
        BEGUN.get()
    yield GATE
    GATE.set()


def wait_at_gate(value=None):
    BEGUN.put(value)
    assert GATE.wait(SECONDS)
    return value


def note(value):
    NOTES.append(value)


def add(a, b):
    return a + b


def fail():
    raise ValueError("no")


def dial(node, frames=()):
    """A stranger's stream to a node: its channel, and what it answers."""
    channel = grpc.insecure_channel(f"127.0.0.1:{node.port}")
    return channel, channel.stream_stream("/genrpc.v1.NodeService/Connect")(iter(frames))


# ---------------------------------------------------------------- nothing stays behind


def test_nothing_counts_any_more_when_calls_have_ended(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    for _ in range(10):
        erpc.call(b.name, HERE, "add", [1, 2], via=a)
        rpc.call(b.name, HERE, "fail", via=a)
        rpc.call(b.name, HERE, "nothing", via=a)
        rpc.cast(b.name, HERE, "note", [1], via=a)
        rpc.ordered_cast((b.name, "key"), HERE, "note", [1], via=a)
        rpc.block_call(b.name, HERE, "add", [1, 2], via=a)
        rpc.call(b.name, HERE, "add", [bytes(300_000), b""], via=a)
    until(lambda: len(NOTES) == 20 and is_at_rest(b))
    assert b.statistics()["calls_served"] == 70


def test_nothing_counts_any_more_when_callers_gave_up(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", via=a) for _ in range(3)]
    for _ in keys:
        BEGUN.get(timeout=SECONDS)
    assert rpc.call(b.name, HERE, "wait_at_gate", [], 0.01, via=a) == BadRPC("timeout")
    assert all(key.cancel() for key in keys)
    GATE.set()
    until(lambda: is_at_rest(b))


def test_nothing_counts_any_more_when_a_stream_was_lost_with_calls_running(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", via=a) for _ in range(3)]
    for _ in keys:
        BEGUN.get(timeout=SECONDS)
    a.stop(0)
    until(lambda: not b._reception.streams)
    assert b._reception.running == 3
    GATE.set()
    until(lambda: is_at_rest(b))


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("running", [0, 3])
def test_ended_stream_leaves_nothing_to_the_collector(nodes, no_collector, running):
    a, b = nodes.start("a"), nodes.start("b")
    erpc.call(b.name, HERE, "add", [1, 2], via=a)
    for _ in range(running):
        erpc.async_call(b.name, HERE, "wait_at_gate", via=a)
    rpc.cast(b.name, HERE, "wait_at_gate", via=a)
    for _ in range(running + 1):
        BEGUN.get(timeout=SECONDS)
    streams = [weakref.ref(stream) for stream in b._reception.streams]
    assert len(streams) == 1
    a.stop(0)
    until(lambda: not b._reception.streams)
    GATE.set()
    until(lambda: is_at_rest(b) and streams[0]() is None)


def test_nothing_counts_any_more_when_replies_waited_for_a_stream_that_was_lost(nodes, monkeypatch):
    """A write of the node hangs while calls end; then the stream is lost."""
    a, b = nodes.start("a"), nodes.start("b")
    erpc.call(b.name, HERE, "add", [1, 2], via=a)
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", via=a) for _ in range(3)]
    for _ in keys:
        BEGUN.get(timeout=SECONDS)
    hung = threading.Event()
    monkeypatch.setattr(stream_module.ServerStream, "write", lambda self, frame, done: hung.set())
    erpc.async_call(b.name, HERE, "add", [1, 2], via=a)
    assert hung.wait(SECONDS)
    GATE.set()
    until(lambda: b._executor.statistics()["running"] == 0)
    a.stop(0)
    until(lambda: is_at_rest(b))


def test_strangers_that_come_and_go_leave_nothing_behind(nodes):
    b = nodes.start("b")
    hello = pb.ConnectRequest(hello=pb.Hello()).SerializeToString()
    for frames in ([], [b"garbage"], [hello], [bytes(100_000)], [b""]):
        channel, answers = dial(b, frames)
        with contextlib.suppress(grpc.RpcError):
            list(answers)
        channel.close()
    until(lambda: not b._reception.streams and is_at_rest(b))


def test_stranger_without_the_cookie_leaves_nothing_behind(nodes):
    b = nodes.start("b")
    stranger = nodes.start("s", cookie="another cookie of 16", tcp_server_port=None)
    assert rpc.call(b.name, HERE, "add", [1, 2], via=stranger) == BadRPC("invalid_cookie")
    until(lambda: not b._reception.streams and is_at_rest(b))


# ---------------------------------------------------------------- handshakes and connections


def test_stranger_that_says_nothing_is_cut_off(nodes):
    b = nodes.start("b", handshake_timeout=0.05)
    channel, answers = dial(b, silence(hold := threading.Event()))
    assert list(answers) == []
    hold.set()
    channel.close()
    until(lambda: not b._reception.streams and is_at_rest(b))


def silence(hold):
    hold.wait(SECONDS)
    yield b""


@pytest.mark.parametrize("limit", ["max_pending_handshakes", "max_pending_handshakes_per_address"])
def test_too_many_handshakes_are_refused_as_overload(nodes, limit, monkeypatch):
    monkeypatch.setattr("genrpc.inbound.PATIENCE_SECONDS", 2 * SECONDS)
    b = nodes.start("b", handshake_timeout=SECONDS, **{limit: 2})
    a = nodes.start("a")
    hold = threading.Event()
    strangers = [dial(b, silence(hold)) for _ in range(2)]
    until(lambda: b._reception.handshakes == 2)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert limit in outcome.message
    assert b.statistics()[f"limit_{limit}"] == 1
    hold.set()
    for channel, _ in strangers:
        channel.close()
    until(lambda: b._reception.handshakes == 0)
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_too_many_handshakes_of_one_address_are_refused_as_overload(nodes):
    b = nodes.start("b", max_pending_handshakes_per_address=2)
    a = nodes.start("a")
    hold = threading.Event()
    strangers = [dial(b, silence(hold)) for _ in range(2)]
    until(lambda: b._reception.handshakes == 2)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert rpc.call(b.name, HERE, "add", [1, 2], via=b) == 3  # its own streams have no address
    hold.set()
    for channel, _ in strangers:
        channel.close()
    until(lambda: not b._reception.handshakes_of)
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


@pytest.mark.parametrize("limit", ["max_pending_handshakes", "max_pending_handshakes_per_address"])
def test_strangers_that_say_nothing_make_room_for_others(nodes, limit, monkeypatch):
    monkeypatch.setattr("genrpc.inbound.PATIENCE_SECONDS", 0.0)
    b = nodes.start("b", handshake_timeout=SECONDS, **{limit: 2})
    a = nodes.start("a")
    hold = threading.Event()
    strangers = [dial(b, silence(hold)) for _ in range(2)]
    until(lambda: b._reception.handshakes == 2)
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    assert b._reception.handshakes == 1
    hold.set()
    for channel, _ in strangers:
        channel.close()
    until(lambda: b._reception.handshakes == 0)


def test_streams_over_max_connections_are_refused_as_overload(nodes):
    b = nodes.start("b", max_connections=2)
    a = nodes.start("a")
    assert rpc.call((b.name, 1), HERE, "add", [1, 2], via=a) == 3
    assert rpc.call((b.name, 2), HERE, "add", [1, 2], via=a) == 3
    assert rpc.call((b.name, 3), HERE, "add", [1, 2], via=a) == BadRPC("overload")
    assert rpc.call((b.name, 1), HERE, "add", [1, 2], via=a) == 3


def test_refusal_reaches_the_caller_and_makes_no_noise(nodes, caplog):
    """gRPC logs an error where a handler returns while its first write is in flight."""
    b = nodes.start("b")
    b_ = b.name.replace("b-", "x-")
    nodes.addresses[b_] = nodes.addresses[b.name]
    a = nodes.start("a")
    for key in range(20):
        assert rpc.call((b_, key), HERE, "add", [1, 2], via=a) == BadRPC("badnode")
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


# ---------------------------------------------------------------- limits and policy


def test_call_over_max_calls_is_refused_and_the_next_is_not(nodes):
    b = nodes.start("b", max_calls=2)
    a, c = nodes.start("a"), nodes.start("c")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", [n], via=a) for n in range(2)]
    for _ in keys:
        BEGUN.get(timeout=SECONDS)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert "max_calls" in outcome.message
    assert rpc.call(b.name, HERE, "add", [1, 2], via=c) == 3  # another caller's are its own
    assert rpc.cast(b.name, HERE, "note", [1], via=a)  # casts do not count
    until(lambda: NOTES == [1])
    GATE.set()
    assert [key.result(SECONDS) for key in keys] == [0, 1]
    until(lambda: is_at_rest(b))
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_call_over_max_node_calls_is_refused_whoever_calls(nodes):
    b = nodes.start("b", max_node_calls=2)
    a, c = nodes.start("a"), nodes.start("c")
    keys = [erpc.async_call(b.name, HERE, "wait_at_gate", [1], via=each) for each in (a, c)]
    for _ in keys:
        BEGUN.get(timeout=SECONDS)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
    assert (outcome, outcome.execution) == (BadRPC("overload"), "not_started")
    assert "max_node_calls" in outcome.message
    assert rpc.cast(b.name, HERE, "note", [1], via=a)  # casts do not count
    until(lambda: NOTES == [1])
    GATE.set()
    assert [key.result(SECONDS) for key in keys] == [1, 1]
    until(lambda: is_at_rest(b))
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_policy_refuses_before_anything_is_decoded_and_is_logged_once(nodes, caplog):
    b = nodes.start("b", rpc_module_control="whitelist", rpc_module_list=["math"])
    a = nodes.start("a")
    with caplog.at_level(logging.WARNING, "genrpc"):
        for _ in range(5):
            outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
            assert (outcome, outcome.execution) == (BadRPC("unauthorized"), "not_started")
        rpc.cast(b.name, HERE, "note", [1], via=a)
    assert rpc.call(b.name, "math", "factorial", [5], via=a) == 120
    assert caplog.text.count(f"target={HERE}:add reason=unauthorized") == 1
    assert NOTES == []


def test_policy_can_change_under_open_streams(nodes):
    b, a = nodes.start("b"), nodes.start("a")
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    b.change_policy("blacklist", [HERE])
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == BadRPC("unauthorized")
    b.change_policy("disabled", [])
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_verdicts_that_are_remembered_are_bounded(nodes, monkeypatch):
    monkeypatch.setattr("genrpc.inbound.MAX_REMEMBERED_VERDICTS", 5)
    b, a = nodes.start("b"), nodes.start("a")
    for number in range(20):
        rpc.call(b.name, HERE, f"f{number}", via=a)
    assert len(b._reception._verdicts) <= 5


def test_request_over_the_nodes_limit_is_refused_before_it_is_sent(nodes):
    b, a = nodes.start("b", max_message_bytes=200_000), nodes.start("a")
    outcome = rpc.call(b.name, HERE, "add", [bytes(300_000), b""], via=a)
    assert (outcome, outcome.execution) == (BadRPC("too_large"), "not_started")
    assert len(rpc.call(b.name, HERE, "add", [bytes(50_000), b""], via=a)) == 50_000


def test_request_over_the_nodes_limit_is_refused_at_its_first_chunk(nodes):
    """A caller that does not keep to the limit that it was told."""
    b, a = nodes.start("b", max_message_bytes=200_000), nodes.start("a")
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    (peer,) = a._peers.values()
    peer._pump.session.peer_max_message_bytes = 10_000_000
    outcome = rpc.call(b.name, HERE, "add", [bytes(3_000_000), b""], via=a)
    assert (outcome, outcome.execution) == (BadRPC("too_large"), "not_started")
    assert "max_message_bytes" in outcome.message
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    until(lambda: is_at_rest(b))


# ---------------------------------------------------------------- stopping


def test_call_that_runs_ends_within_the_grace(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    key = erpc.async_call(b.name, HERE, "wait_at_gate", [5], via=a)
    BEGUN.get(timeout=SECONDS)
    stopping = threading.Thread(target=b.stop, args=(SECONDS,))
    stopping.start()
    until(lambda: b._reception.draining)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=a)
    assert (outcome, outcome.execution) == (BadRPC("draining"), "not_started")
    GATE.set()
    assert key.result(SECONDS) == 5
    stopping.join(SECONDS)
    assert not stopping.is_alive()


def test_large_result_still_arrives_when_its_node_stops(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    key = erpc.async_call(b.name, HERE, "zeros_at_gate", [30_000_000], via=a)
    BEGUN.get(timeout=SECONDS)
    stopping = threading.Thread(target=b.stop, args=(SECONDS,))
    stopping.start()
    until(lambda: b._reception.draining)
    GATE.set()
    assert len(key.result(SECONDS)) == 30_000_000
    stopping.join(SECONDS)


def zeros_at_gate(size):
    wait_at_gate()
    return bytes(size)


def test_call_that_outlasts_the_grace_is_cut_off_and_logged(nodes, caplog):
    a, b = nodes.start("a"), nodes.start("b")
    key = erpc.async_call(b.name, HERE, "wait_at_gate", via=a)
    BEGUN.get(timeout=SECONDS)
    b.stop(0.05)
    with pytest.raises(erpc.TransportError) as caught:
        key.result(SECONDS)
    assert (caught.value.reason, caught.value.execution) == ("closed", "unknown")
    assert f"{b.name} stopped while 1 calls were running" in caplog.text


def test_new_stream_to_a_node_that_is_stopping_is_refused(nodes):
    a, b, c = nodes.start("a"), nodes.start("b"), nodes.start("c")
    erpc.async_call(b.name, HERE, "wait_at_gate", via=a)
    BEGUN.get(timeout=SECONDS)
    stopping = threading.Thread(target=b.stop, args=(SECONDS,))
    stopping.start()
    until(lambda: b._reception.draining)
    outcome = rpc.call(b.name, HERE, "add", [1, 2], via=c)
    assert outcome in (BadTCP("econnrefused"), BadRPC("draining"))
    assert outcome.execution == "not_started"
    GATE.set()
    stopping.join(SECONDS)


def test_own_stream_to_a_node_that_is_stopping_is_refused_as_draining(nodes):
    b = nodes.start("b")
    b._reception.draining = True
    assert rpc.call(b.name, HERE, "add", [1, 2], via=b) == BadRPC("draining")


# ---------------------------------------------------------------- idle and old streams


def test_idle_stream_is_given_up_by_the_callee_and_dialled_again(nodes):
    b, a = nodes.start("b", server_inactivity_timeout=0.05), nodes.start("a")
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    until(lambda: not b._reception.streams and a.nodes() == [])
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_caller_that_does_not_close_an_idle_stream_is_not_waited_for(nodes, monkeypatch):
    monkeypatch.setattr("genrpc.protocol.server_session.LEAVE_SECONDS", 0.01)
    monkeypatch.setattr("genrpc.transport.pump.Pump.leave", lambda pump: None)
    b, a = nodes.start("b", server_inactivity_timeout=0.02), nodes.start("a")
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3
    until(lambda: not b._reception.streams)
    assert rpc.call(b.name, HERE, "add", [1, 2], via=a) == 3


def test_stream_is_not_idle_while_a_call_runs(nodes):
    b, a = nodes.start("b", server_inactivity_timeout=0.05), nodes.start("a")
    key = erpc.async_call(b.name, HERE, "wait_at_gate", [5], via=a)
    BEGUN.get(timeout=SECONDS)
    assert rpc.nb_yield(key, 0.2) == "timeout"
    assert a.nodes() == [b.name]
    GATE.set()
    assert key.result(SECONDS) == 5


def test_old_stream_is_replaced_without_a_call_noticing(nodes):
    b, a = nodes.start("b", max_connection_age=0.03), nodes.start("a")
    long = erpc.async_call(b.name, HERE, "wait_at_gate", [5], via=a)
    BEGUN.get(timeout=SECONDS)
    calls = 0
    while b.statistics()["streams_accepted"] < 4:
        assert rpc.call(b.name, HERE, "add", [calls, 1], via=a) == calls + 1
        calls += 1
    GATE.set()
    assert long.result(SECONDS) == 5


def test_ordered_casts_keep_their_order_over_streams_that_grow_old(nodes):
    b, a = nodes.start("b", max_connection_age=0.01), nodes.start("a")
    number = 0
    while b.statistics().get("streams_accepted", 0) < 10:
        for _ in range(20):
            erpc.ordered_cast((b.name, "key"), HERE, "note", [number], via=a)
            number += 1
        until(lambda: NOTES and NOTES[-1] > number - 100)  # noqa: B023  # called at once
    until(lambda: len(NOTES) == number)
    assert list(range(number)) == NOTES
