"""Streams over real gRPC on loopback, and both ways to drive a write."""

import asyncio
import logging
import sys

import grpc
import psutil
import pytest
from waiting import SECONDS, until

from genrpc.errors import BadTCP
from genrpc.transport import stream as stream_module
from genrpc.transport.channel import Line
from genrpc.transport.dialling import open_stream
from genrpc.transport.listening import Listener
from genrpc.transport.loop import loop_thread

LINE = Line(max_frame_bytes=1_000_000, keepalive_interval=None, keepalive_timeout=None)
WIDE = Line(max_frame_bytes=4_000_000, keepalive_interval=None, keepalive_timeout=None)


def by_hand(coroutine, loop, done):
    stream_module._ByHand(coroutine, done).step()


def eager(coroutine, loop, done):
    NATIVE(coroutine, loop, done)


NATIVE = stream_module.drive  # before a test puts another in its place
WAYS = [by_hand] if sys.version_info < (3, 12) else [by_hand, eager]


@pytest.fixture(params=WAYS)
def drive(request):
    return request.param


@pytest.fixture
def either_drive(drive, monkeypatch):
    """Streams use one way and the other."""
    monkeypatch.setattr(stream_module, "drive", drive)


def on_loop(work):
    """Run a coroutine function on the loop thread."""
    return loop_thread().run(work(), SECONDS)


# ---------------------------------------------------------------- driving


def test_what_needs_no_waiting_is_done_at_once(drive):
    async def work():
        done = []

        async def nothing():
            pass

        drive(nothing(), asyncio.get_running_loop(), done.append)
        return done

    assert on_loop(work) == [None]


def test_what_waits_goes_on_when_it_can(drive):
    async def work():
        loop = asyncio.get_running_loop()
        first, second, ended = loop.create_future(), loop.create_future(), loop.create_future()
        steps = []

        async def wait():
            steps.append("begun")
            await first
            steps.append("waits again")
            await second

        drive(wait(), loop, ended.set_result)
        assert steps == ["begun"]
        first.set_result(None)
        await asyncio.sleep(0)
        assert steps == ["begun", "waits again"]
        second.set_result(None)
        return await ended

    assert on_loop(work) is None


@pytest.mark.parametrize("waits", [False, True])
def test_exception_is_told(drive, waits):
    async def work():
        loop = asyncio.get_running_loop()
        ended, future = loop.create_future(), loop.create_future()
        error = LookupError("no")

        async def fail():
            if waits:
                await future
            raise error

        drive(fail(), loop, ended.set_result)
        future.set_result(None)
        return await ended is error

    assert on_loop(work)


@pytest.mark.parametrize("waits", [False, True])
def test_cancellation_is_told_as_an_exception(drive, waits):
    async def work():
        loop = asyncio.get_running_loop()
        ended, future = loop.create_future(), loop.create_future()

        async def wait():
            if waits:
                await future
            raise asyncio.CancelledError

        drive(wait(), loop, ended.set_result)
        future.cancel()
        return type(await ended)

    assert on_loop(work) is asyncio.CancelledError


# ---------------------------------------------------------------- over gRPC


class Owner:
    """Collects what comes; `reply` is called with each frame."""

    def __init__(self, reply=None):
        self.frames = asyncio.Queue()
        self.ends = asyncio.get_running_loop().create_future()
        self.reply = reply

    def received(self, frame):
        if self.reply is not None:
            self.reply(frame)
        self.frames.put_nowait(frame)

    def ended(self, failure):
        self.ends.set_result(failure)  # a second time would raise


class Wire:
    """A listener, and a stream from a client to it."""

    async def open(self, client_line=LINE, reply=None):
        loop, thread = asyncio.get_running_loop(), loop_thread()
        accepted = loop.create_future()
        self.listener = Listener(LINE, lambda stream, _: accepted.set_result(stream), loop)
        await self.listener.start("127.0.0.1", 0)
        self.client = open_stream(
            ["127.0.0.1"], self.listener.port, client_line, None, loop, thread.spawn
        )
        self.caller, self.callee = Owner(), Owner(reply)
        self.client.start(self.caller)
        self.server = await accepted
        self.server.start(self.callee)
        return self

    async def close(self):
        self.client.abort()
        await self.listener.stop(0)


def over_wire(work, **options):
    async def run():
        wire = await Wire().open(**options)
        try:
            return await asyncio.wait_for(work(wire), SECONDS)
        finally:
            await wire.close()

    return loop_thread().run(run(), 2 * SECONDS)


async def write(stream, frame):
    written = asyncio.get_running_loop().create_future()
    stream.write(frame, written.set_result)
    return await written


@pytest.mark.usefixtures("either_drive")
def test_frames_go_both_ways_in_order_and_unchanged():
    frames = [b"", b"\x00", b"x" * 900_000, "ü".encode()]

    async def work(wire):
        for frame in frames:
            assert await write(wire.client, frame) is None
            assert await write(wire.server, frame[::-1]) is None
        there = [await wire.callee.frames.get() for _ in frames]
        back = [await wire.caller.frames.get() for _ in frames]
        return there, back

    assert over_wire(work) == (frames, [frame[::-1] for frame in frames])


@pytest.mark.usefixtures("either_drive")
def test_half_close_of_the_client_ends_the_stream_in_good_order():
    async def work(wire):
        await write(wire.client, b"last")
        wire.client.half_close()
        assert await wire.callee.ends is None
        assert wire.callee.frames.get_nowait() == b"last"
        await write(wire.server, b"reply")
        wire.server.half_close()
        assert await wire.caller.ends is None
        return wire.caller.frames.get_nowait()

    assert over_wire(work) == b"reply"


@pytest.mark.usefixtures("either_drive")
def test_abort_of_the_client_ends_both_sides():
    async def work(wire):
        await write(wire.server, b"hello")
        wire.client.abort()
        return await wire.caller.ends, await wire.callee.ends

    caller, callee = over_wire(work)
    assert caller == BadTCP("closed")
    assert callee in (None, BadTCP("closed"))  # the releases of grpcio differ


def test_end_by_the_server_waits_for_the_write_in_flight_and_makes_no_noise(caplog):
    """gRPC logged an error, and could lose the frame, when its first write was in flight."""

    async def work(wire):
        wire.server.write(b"last words", lambda error: None)
        wire.server.abort()
        assert await wire.caller.ends is None
        return wire.caller.frames.get_nowait()

    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            assert over_wire(work) == b"last words"
    assert caplog.text == ""


def test_read_of_a_stream_that_the_server_ends_is_let_end_by_itself(monkeypatch, caplog):
    """A read that is cancelled leaves memory of gRPC's behind: 600 bytes with what it read."""
    cancelled, begin = [], stream_module.ServerStream.start

    class Watched:
        def __init__(self, call):
            self.call = call

        def __getattr__(self, name):
            return getattr(self.call, name)

        async def read(self):
            try:
                return await self.call.read()
            except asyncio.CancelledError:
                cancelled.append(self)
                raise

    def start(stream, owner):
        stream._call = Watched(stream._call)
        begin(stream, owner)

    async def work(wire):
        await write(wire.client, b"frame")
        await wire.callee.frames.get()
        wire.server.abort()
        wire.client.write(b"too late", lambda error: None)
        return await wire.callee.ends

    monkeypatch.setattr(stream_module.ServerStream, "start", start)
    for _ in range(20):
        assert over_wire(work) in (None, BadTCP("closed"))
    assert not cancelled
    assert caplog.text == ""


def test_caller_that_does_not_read_cannot_hold_the_servers_end_up(monkeypatch):
    monkeypatch.setattr(stream_module, "WRITE_SECONDS", 0.02)

    async def work(wire):
        written = []
        wire.server._call = Stuck(wire.server._call)
        wire.server.write(b"never", written.append)
        wire.server.abort()
        assert await wire.caller.ends is None
        return written

    assert over_wire(work) == []


class Stuck:
    """A call whose writes hang."""

    def __init__(self, call):
        self._call = call

    def __getattr__(self, name):
        return getattr(self._call, name)

    async def write(self, frame):
        await asyncio.get_running_loop().create_future()


def test_write_to_a_stream_that_is_over_fails_and_is_told():
    async def work(wire):
        wire.client.abort()
        await wire.caller.ends
        return await write(wire.client, b"late")

    assert isinstance(over_wire(work), BaseException)


def test_owner_that_raises_ends_the_stream_with_a_sentence(caplog):
    def fail(frame):
        raise LookupError("a fault of ours")

    async def work(wire):
        await write(wire.client, b"frame")
        return await wire.callee.ends

    failure = over_wire(work, reply=fail)
    assert failure == BadTCP("closed")
    assert "a fault of ours" in failure.message
    assert "A stream broke" in caplog.text


def test_frame_over_the_other_sides_limit_ends_the_stream():
    async def work(wire):
        wire.client.write(b"x" * 2_000_000, lambda error: None)
        return await wire.caller.ends

    assert over_wire(work, client_line=WIDE).reason in ("corrupt_data", "closed")


def test_stream_that_was_never_begun_is_hung_up():
    hung_up = []

    async def work(wire):
        call = wire.client._call
        stream = stream_module.ClientStream(
            lambda: call, asyncio.get_running_loop(), lambda: hung_up.append(1)
        )
        stream.abort()

    over_wire(work)
    assert hung_up == [1]


class Answering:
    """A call of grpc.aio's that has one answer when it is read."""

    def __init__(self, answer):
        self._answer = answer
        self.cancelled = False

    async def read(self):
        if self._answer is None:
            await asyncio.sleep(SECONDS)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def cancel(self):
        self.cancelled = True


def status(code, details):
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, none, none, details)


WRITE_FAILED = status(grpc.StatusCode.INTERNAL, "Internal error from Core")


@pytest.mark.parametrize(
    ("answer", "reason", "frames"),
    [
        (status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), "corrupt_data", []),
        (status(grpc.StatusCode.UNAVAILABLE, "Connection refused"), "econnrefused", []),
        (grpc.aio.EOF, "closed", []),
        (b"a frame", "closed", [b"a frame"]),
        (None, "closed", []),
    ],
)
def test_what_a_failed_first_write_hides_is_asked_for(monkeypatch, answer, reason, frames):
    monkeypatch.setattr(stream_module, "ASK_SECONDS", 0.01)
    calls = [Answering(WRITE_FAILED), Answering(answer)]
    made = iter(calls)

    async def work():
        loop = asyncio.get_running_loop()
        stream = stream_module.ClientStream(lambda: next(made), loop, lambda: None)
        owner = Owner()
        stream.start(owner)
        failure = await owner.ends
        received = [owner.frames.get_nowait() for _ in range(owner.frames.qsize())]
        return failure.reason, received

    assert on_loop(work) == (reason, frames)
    assert calls[1].cancelled


def test_streams_leave_no_descriptors_behind():
    async def work(wire):
        await write(wire.client, b"frame")
        await wire.callee.frames.get()

    process = psutil.Process()
    over_wire(work)
    before = process.num_fds()
    for _ in range(20):
        over_wire(work)
    until(lambda: process.num_fds() <= before + 2)
