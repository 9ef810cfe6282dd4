import asyncio
import logging
import socket

import grpc
import pytest
from waiting import SECONDS, until

from genrpc.transport.channel import Line
from genrpc.transport.listening import CannotListenError, Listener
from genrpc.transport.loop import loop_thread

LINE = Line(max_frame_bytes=4_000_000, keepalive_interval=10.0, keepalive_timeout=5.0)


def on_loop(coroutine):
    return loop_thread().run(coroutine, SECONDS)


async def new_listener(accepted):
    return Listener(LINE, lambda *stream: accepted.append(stream), asyncio.get_running_loop())


@pytest.fixture
def accepted():
    return []


@pytest.fixture
def listener(accepted):
    listener = on_loop(new_listener(accepted))
    on_loop(listener.start("127.0.0.1", 0))
    yield listener
    on_loop(listener.stop(0))


def test_port_0_takes_a_free_one(listener):
    assert listener.port > 0
    socket.create_connection(("127.0.0.1", listener.port), SECONDS).close()


def test_ipv6_address_can_be_listened_on():
    listener = on_loop(new_listener([]))
    on_loop(listener.start("::1", 0))
    socket.create_connection(("::1", listener.port), SECONDS).close()
    on_loop(listener.stop(0))


def test_taken_port_is_refused_with_its_address_and_is_not_shared(listener, accepted):
    with pytest.raises(CannotListenError, match=f"127.0.0.1:{listener.port}"):
        on_loop(on_loop(new_listener(accepted)).start("127.0.0.1", listener.port))


def test_address_of_another_machine_is_refused(accepted):
    with pytest.raises(CannotListenError, match=r"192\.0\.2\.1"):
        on_loop(on_loop(new_listener(accepted)).start("192.0.2.1", 0))


def test_stream_is_accepted_with_the_address_of_its_caller(listener, accepted):
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        call = channel.stream_stream("/genrpc.v1.NodeService/Connect")(iter(()))
        until(lambda: accepted)
        call.cancel()  # dropped before, it might have been cancelled before it began
        stream, address = accepted[0]
        assert address.startswith("ipv4:127.0.0.1:")
        loop_thread().call(stream.abort)


def test_unknown_method_is_unimplemented(listener):
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/genrpc.v1.NodeService/Nothing")(b"", timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_after_stop_nobody_connects(listener):
    on_loop(listener.stop(0))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), SECONDS)


def test_listener_that_dies_is_begun_anew_on_its_port(listener, caplog):
    """As grpcio ends a server whose own loop has raised."""
    on_loop(listener._server.stop(0))
    until(lambda: "is begun anew" in caplog.text)
    until(lambda: can_connect(listener.port))
    on_loop(listener.stop(0))
    assert not can_connect(listener.port)


def test_listener_that_dies_waits_for_its_port(listener, caplog, monkeypatch):
    monkeypatch.setattr("genrpc.transport.listening.AGAIN_SECONDS", 0.01)
    bind, failures = listener._bind, iter([CannotListenError("taken")] * 2)
    monkeypatch.setattr(listener, "_bind", lambda address: fail(failures) or bind(address))
    on_loop(listener._server.stop(0))
    until(lambda: caplog.text.count("taken") == 2)
    until(lambda: can_connect(listener.port))


def fail(failures):
    for failure in failures:
        raise failure


def can_connect(port):
    try:
        socket.create_connection(("127.0.0.1", port), SECONDS).close()
    except ConnectionRefusedError:
        return False
    return True


def test_failed_start_leaves_nothing_to_complain_of(listener, accepted, caplog):
    for _ in range(3):
        with pytest.raises(CannotListenError):
            on_loop(on_loop(new_listener(accepted)).start("127.0.0.1", listener.port))
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
