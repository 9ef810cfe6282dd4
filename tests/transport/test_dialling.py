import asyncio
import socket
import threading

import pytest
from waiting import SECONDS

from genrpc.transport import dialling
from genrpc.transport.channel import Line
from genrpc.transport.dialling import Resolver, open_stream, unknown_host
from genrpc.transport.loop import loop_thread

LINE = Line(max_frame_bytes=4_000_000, keepalive_interval=None, keepalive_timeout=None)


def on_loop(coroutine):
    return loop_thread().run(coroutine, SECONDS)


@pytest.fixture
def resolver():
    async def make():
        return Resolver(asyncio.get_running_loop())

    return on_loop(make())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.7"])
def test_literal_address_needs_no_look_up(resolver, host, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert on_loop(resolver.addresses(host)) == [host]


def test_host_name_is_looked_up(resolver):
    assert "127.0.0.1" in on_loop(resolver.addresses("localhost"))


def test_all_addresses_of_a_host_are_given_once(resolver, monkeypatch):
    def found(host, port, type):
        kinds = [socket.AF_INET6, socket.AF_INET, socket.AF_INET]
        addresses = ["::1", "127.0.0.1", "127.0.0.1"]
        return [(k, type, 6, "", (a, 0)) for k, a in zip(kinds, addresses, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert on_loop(resolver.addresses("both.example")) == ["::1", "127.0.0.1"]


def test_host_without_an_address_is_an_os_error(resolver):
    with pytest.raises(socket.gaierror):
        on_loop(resolver.addresses("no-such-host.invalid"))


def test_unknown_host_is_told_with_its_name():
    failure = unknown_host("no-such-host.invalid")
    assert (failure.reason, failure.execution) == ("nxdomain", "not_started")
    assert "no-such-host.invalid" in failure.message


def test_function_runs_beside_the_loop(resolver):
    assert on_loop(resolver.run(threading.get_ident)) not in (
        threading.get_ident(),
        loop_thread().ident,
    )


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
def test_exception_that_no_task_may_raise_comes_as_another(resolver, error):
    def fail():
        raise error("no")

    with pytest.raises(RuntimeError, match=error.__name__):
        on_loop(resolver.run(fail))


def test_only_so_many_run_at_once_even_when_nobody_waits_for_them(monkeypatch):
    monkeypatch.setattr(dialling, "MAX_RESOLVING", 3)
    go, begun = threading.Event(), []

    def hang():
        begun.append(1)
        go.wait(SECONDS)

    async def flood():
        resolver = Resolver(asyncio.get_running_loop())
        hanging = [asyncio.ensure_future(resolver.run(hang)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)
        late = asyncio.ensure_future(resolver.run(lambda: len(begun)))
        done, _ = await asyncio.wait([late], timeout=0.02)
        assert not done
        go.set()
        return await late

    assert on_loop(flood()) == 3


def test_thread_that_cannot_be_started_takes_no_place(monkeypatch):
    monkeypatch.setattr(dialling, "MAX_RESOLVING", 1)
    start = threading.Thread.start

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def twice():
        resolver = Resolver(asyncio.get_running_loop())
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            await resolver.run(int)
        monkeypatch.setattr(threading.Thread, "start", start)
        return await resolver.run(int)

    assert on_loop(twice()) == 0


class Ending:
    """An owner of a stream; says how it ended."""

    def __init__(self):
        self.failure = asyncio.get_running_loop().create_future()

    def received(self, frame):
        raise AssertionError("nobody is there to send a frame")

    def ended(self, failure):
        self.failure.set_result(failure)


def dial(addresses, port):
    async def dial():
        thread = loop_thread()
        stream = open_stream(addresses, port, LINE, None, thread.loop, thread.spawn)
        owner = Ending()
        stream.start(owner)
        return await owner.failure

    return on_loop(dial())


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::1"], ["127.0.0.1", "127.0.0.2"]])
def test_port_at_which_nobody_listens_is_refused(addresses, closed_port):
    assert dial(addresses, closed_port).reason == "econnrefused"


def test_ipv4_is_dialled_where_a_host_has_both():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        port = server.getsockname()[1]

        async def dial():
            thread = loop_thread()
            return open_stream(["::1", "127.0.0.1"], port, LINE, None, thread.loop, thread.spawn)

        stream = on_loop(dial())
        server.accept()[0].close()
        loop_thread().call(stream.abort)
