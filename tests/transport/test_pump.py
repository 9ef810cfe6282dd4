"""Pumps with real sessions, joined by a stream within the process; no gRPC."""

import asyncio
import logging

import pytest
from waiting import SECONDS

from genrpc import security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.authentication import CookieAuthenticator
from genrpc.errors import BadRPC, BadTCP
from genrpc.loops import Mailbox
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.events import CallsArrived, CallsCancelled, CallsEnded, Closed, Drained, Opened
from genrpc.protocol.pending import VALUE, Call
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Limits, Phase
from genrpc.transport import pump as pump_module
from genrpc.transport.loopback import LoopbackStream
from genrpc.transport.pump import Pump

pytestmark = pytest.mark.asyncio

CLIENT, SERVER = "a@127.0.0.1", "b@127.0.0.1"
TARGET = ("math", "factorial", "")


def authenticator(cookie=b"0123456789abcdef"):
    return CookieAuthenticator(security.derive_key(cookie))


class End:
    """A session with its pump and mailbox; remembers what it is told."""

    def __init__(self, session):
        loop = asyncio.get_running_loop()
        self.session = session
        self.events = []
        self.woken = 0
        self.fails = None
        self._changed = asyncio.Event()
        self.mailbox = Mailbox(loop, self._woken)
        self.pump = Pump(loop, session, self, self.mailbox)

    def _woken(self):
        self.woken += 1
        self._changed.set()
        self.pump.flush()

    def take_in(self, items, now):
        if self.fails == "take_in":
            raise LookupError("take_in")
        for item in items:
            if isinstance(item, Call):
                self.session.submit(item, now)
            else:
                self.session.reply_all([item])

    def handle(self, event):
        self.events.append(event)
        self._changed.set()
        if self.fails is type(event):
            raise LookupError("handle")

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition):
        async def wait():
            while not condition():
                self._changed.clear()
                await asyncio.wait([asyncio.ensure_future(self._changed.wait())], timeout=0.01)

        await asyncio.wait_for(wait(), SECONDS)

    async def until_seen(self, kind, number=1):
        await self.until(lambda: len(self.seen(kind)) >= number)
        return self.seen(kind)[number - 1]


class Client(End):
    def __init__(self, connect=None, cookie=b"0123456789abcdef", **options):
        now = asyncio.get_running_loop().time()
        deadline = None if connect is None else now + connect
        super().__init__(
            ClientSession(
                Route(CLIENT, SERVER),
                authenticator(cookie),
                Limits(),
                connect_deadline=deadline,
                **options,
            )
        )

    def attach(self, stream):
        self.session.opened(asyncio.get_running_loop().time())
        self.pump.attach(stream)

    def call(self, timeout=None):
        now = asyncio.get_running_loop().time()
        call = Call(TARGET, b"args", deadline=None if timeout is None else now + timeout)
        self.mailbox.post(call)
        return call


class Server(End):
    def __init__(self, **options):
        super().__init__(ServerSession(Identity(SERVER, "i", "s"), authenticator(), Limits()))


class StuckStream:
    """A stream that takes frames and never says that it has."""

    def __init__(self):
        self.frames = []
        self.dones = []
        self.aborted = self.half_closed = 0

    def start(self, owner):
        self.owner = owner

    def write(self, frame, done):
        self.frames.append(frame)
        self.dones.append(done)

    def half_close(self):
        self.half_closed += 1

    def abort(self):
        self.aborted += 1


async def joined(**options):
    """A client and a server whose handshake is done."""
    client, server = Client(**options), Server()
    mine, other = LoopbackStream.pair(asyncio.get_running_loop())
    server.pump.attach(other)
    client.attach(mine)
    await client.until_seen(Opened)
    return client, server


async def test_call_made_before_there_is_a_stream_arrives_when_there_is_one():
    client, server = Client(), Server()
    call = client.call()
    await client.until(lambda: len(client.mailbox) == 0)
    mine, other = LoopbackStream.pair(asyncio.get_running_loop())
    server.pump.attach(other)
    client.attach(mine)
    arrived = (await server.until_seen(CallsArrived)).calls[0]
    server.mailbox.post((arrived, VALUE, b"result", ()))
    assert (await client.until_seen(CallsEnded)).calls == [call]
    assert (call.failure, call.head) == (None, b"result")


async def test_call_that_waits_for_a_stream_has_the_same_clock():
    client = Client()
    call = client.call(timeout=0.01)
    await client.until_seen(CallsEnded)
    assert (call.failure, call.failure.execution) == (BadRPC("timeout"), "not_started")


async def test_dial_that_takes_too_long_ends_all_calls():
    client = Client(connect=0.01)
    call = client.call()
    await client.until_seen(Closed)
    assert call.failure == BadTCP("connect_timeout")
    assert client.pump.over


async def test_earlier_deadline_overtakes_a_later_one():
    client = Client(connect=3600.0)
    late = client.call(timeout=1800.0)
    await client.until(lambda: len(client.mailbox) == 0)
    early = client.call(timeout=0.01)
    assert (await client.until_seen(CallsEnded)).calls == [early]
    assert late.failure is None
    client.pump.close(None)


async def test_deadline_holds_while_a_write_hangs():
    client = Client()
    client.attach(StuckStream())  # the hello hangs
    call = client.call(timeout=0.01)
    await client.until_seen(CallsEnded)
    assert call.failure == BadRPC("timeout")
    assert len(client.pump._stream.frames) == 1


async def test_next_frame_waits_for_the_write_in_flight():
    client, stream = Client(), StuckStream()
    client.attach(stream)
    client.session.ping(1, 0.0)
    client.pump.flush()
    assert len(stream.frames) == 1
    stream.dones[0](None)
    assert len(stream.frames) == 2


async def test_nothing_is_written_after_a_failed_write_until_the_end_comes():
    client, stream = Client(), StuckStream()
    client.attach(stream)
    call = client.call()
    await client.until(lambda: len(client.mailbox) == 0)
    stream.dones[0](OSError("broken"))
    client.session.ping(1, 0.0)
    client.pump.flush()
    assert len(stream.frames) == 1
    stream.owner.ended(BadTCP("closed"))
    assert (call.failure, client.pump.over) == (BadTCP("closed"), True)


async def test_stream_that_ends_with_frames_unsent_is_over_all_the_same():
    client, stream = Client(), StuckStream()
    client.attach(stream)
    client.session.ping(1, 0.0)
    assert client.session.wants_to_send
    stream.owner.ended(None)
    assert client.pump.over
    assert client.pump._timer is None or client.pump._timer.cancelled()


async def test_refusal_is_sent_before_the_stream_is_ended():
    server, stream = Server(), StuckStream()
    server.session.refuse("draining", "no")
    server.pump.attach(stream)
    assert (len(stream.frames), stream.aborted) == (1, 1)


async def test_refusal_behind_a_write_that_hangs_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr(pump_module, "LEAVE_SECONDS", 0.01)
    server, stream = Server(), StuckStream()
    server.pump.attach(stream)
    hello = pb.Hello(
        revision_max=1, revision_min=1, node=CLIENT, target_node=SERVER, nonce=bytes(32)
    )
    server.pump.received(pb.ConnectRequest(hello=hello).SerializeToString())
    wrong = pb.AuthProof(mac=bytes(32))
    server.pump.received(pb.ConnectRequest(auth_proof=wrong).SerializeToString())
    assert server.session.wants_to_send  # behind the challenge, which hangs
    await server.until(lambda: server.pump.over)
    assert (len(stream.frames), stream.aborted) == (1, 1)


async def test_refusal_behind_a_write_that_goes_on_is_sent():
    server, stream = Server(), StuckStream()
    server.pump.attach(stream)
    hello = pb.Hello(
        revision_max=1, revision_min=1, node=CLIENT, target_node=SERVER, nonce=bytes(32)
    )
    server.pump.received(pb.ConnectRequest(hello=hello).SerializeToString())
    wrong = pb.AuthProof(mac=bytes(32))
    server.pump.received(pb.ConnectRequest(auth_proof=wrong).SerializeToString())
    stream.dones.pop()(None)
    assert (len(stream.frames), server.pump.over) == (2, True)


async def test_stranger_that_does_not_read_its_refusal_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(pump_module, "LEAVE_SECONDS", 0.01)
    server, stream = Server(), StuckStream()
    server.pump.attach(stream)
    server.pump._writing = True  # of something before
    server.session.refuse("overload", "no")
    server.pump.close(None)
    assert not server.pump.over
    await server.until(lambda: server.pump.over)
    assert stream.aborted == 1


async def test_reply_that_lies_in_the_mailbox_when_the_stream_ends_is_not_forgotten():
    client, server = await joined()
    client.call()
    arrived = (await server.until_seen(CallsArrived)).calls[0]
    # While a write hangs, replies wait in the mailbox, and nobody is woken for further ones.
    server.pump._writing = True
    server.mailbox.post((arrived, VALUE, b"result", ()))
    await server.until(lambda: server.woken)
    server.woken = 0
    server.pump.ended(None)
    assert server.pump.over
    await server.until(lambda: server.woken)
    assert len(server.mailbox) == 1  # its owner is told, and takes it


async def test_wrong_cookie_ends_both_sides_with_the_reason():
    client, server = Client(cookie=b"another cookie!!"), Server()
    call = client.call()
    mine, other = LoopbackStream.pair(asyncio.get_running_loop())
    server.pump.attach(other)
    client.attach(mine)
    closed = await client.until_seen(Closed)
    assert closed.failure == call.failure == BadRPC("invalid_cookie")
    assert (await server.until_seen(Closed)).failure == BadRPC("invalid_cookie")


async def test_close_ends_the_calls_and_the_other_side():
    client, server = await joined()
    call = client.call()
    await server.until_seen(CallsArrived)
    client.pump.close(BadTCP("closed", message="enough"))
    assert (call.failure, call.failure.execution) == (BadTCP("closed"), "unknown")
    assert (await server.until_seen(CallsCancelled)).calls
    await server.until(lambda: server.pump.over)


async def test_other_side_that_closes_out_of_turn_is_a_lost_stream():
    client, server = await joined()
    server.pump.close(None)
    assert (await client.until_seen(Closed)).failure == BadTCP("closed")


async def test_stream_that_was_left_ends_without_a_failure():
    client, server = await joined(idle_timeout=0.01)
    await client.until_seen(Drained)
    client.pump.leave()
    assert (await client.until_seen(Closed)).failure is None
    assert client.pump.over
    assert (await server.until_seen(Closed)).failure == BadTCP("closed")


async def test_other_side_that_does_not_end_a_left_stream_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(pump_module, "LEAVE_SECONDS", 0.01)
    client, stream = Client(), StuckStream()
    client.attach(stream)
    client.session.phase = Phase.LEAVING
    client.pump.leave()
    await client.until(lambda: client.pump.over)
    assert (stream.half_closed, stream.aborted) == (1, 1)


async def test_pump_whose_mailbox_went_to_another_drives_on_what_it_has():
    client, server = await joined()
    call = client.call()
    arrived = (await server.until_seen(CallsArrived)).calls[0]
    client.pump.detach_mailbox()
    other = client.call()
    server.mailbox.post((arrived, VALUE, b"result", ()))
    assert (await client.until_seen(CallsEnded)).calls == [call]
    assert (other.failure, len(client.mailbox)) == (None, 1)
    client.pump.close(None)


async def test_fault_in_handling_one_event_does_not_keep_the_next_from_being_told(caplog):
    client, server = await joined()
    client.fails = CallsEnded
    first, second = client.call(), client.call()
    await server.until_seen(CallsArrived)
    with caplog.at_level(logging.ERROR, "genrpc"):
        server.pump.close(None)
        await client.until_seen(Closed)
    assert first.failure == second.failure == BadTCP("closed")
    assert "Handling CallsEnded went wrong" in caplog.text
    assert client.pump.over


async def test_fault_in_taking_in_ends_the_stream_with_a_sentence(caplog):
    client, server = await joined()
    call = client.call()
    await server.until_seen(CallsArrived)
    client.fails = "take_in"
    with caplog.at_level(logging.ERROR, "genrpc"):
        client.call()
        await client.until_seen(Closed)
    assert call.failure == BadTCP("closed")
    assert "take_in" in call.failure.message
    assert "because of a fault in genrpc" in caplog.text
    assert client.pump.over


async def test_closing_twice_is_closing_once():
    client, _ = await joined()
    client.pump.close(BadTCP("closed"))
    client.pump.close(BadTCP("closed"))
    client.pump.flush()
    client.pump.ended(None)
    assert len(client.seen(Closed)) == 1
