"""Every kind of frame in every state of a session: only the documented answers, no other effect.

A state machine sends what it likes to a server's session and to a client's: frames of every kind,
good, bad, out of turn and mutated, while calls are answered and the time passes. The honest use
of the two is tested in tests/protocol/test_state_machine.py.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from scale import count, patient, seeded

from genrpc import security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.authentication import CookieAuthenticator
from genrpc.protocol.chunks import PART_BYTES
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.events import (
    Answered,
    CallsArrived,
    CallsCancelled,
    CallsEnded,
    CallsReturned,
    Closed,
    Drained,
    Event,
    Opened,
    TransferRefused,
)
from genrpc.protocol.pending import ENDED, ERROR, VALUE, Call, IncomingCall
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Limits, Phase, Session

pytestmark = [pytest.mark.slow, patient]

ROUNDS = count(1, 50)
"""In each, hypothesis begins anew: what it remembers of a sequence takes some 150 kB."""

SEQUENCES = settings(
    max_examples=count(1000, 2000),  # of each of the two ends, in each round
    stateful_step_count=count(10, 20),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

KEY = security.Cookie("0123456789abcdef0123456789abcdef").key
ALPHA, BETA = "alpha@127.0.0.1", "beta@127.0.0.1"
LIMITS = Limits(
    max_frame_bytes=70_000,
    max_message_bytes=50,
    chunk_bytes=7,
    window_bytes=100,
    max_calls=5,
    cast_window=2,
    max_unread_reply_bytes=2000,
    max_transfer_bytes=2 * PART_BYTES + 60,
)
REASONS = {
    *("corrupt_data", "invalid_cookie", "badnode", "overload", "draining"),
    *("closed", "connect_timeout"),
}

# ---------------------------------------------------------------- what is said

# Made beforehand, from a seed: to draw each number of a frame took most of the time.
DRAW = seeded("hostile frames")
MADE = count(1000, 20_000)
SOMETIMES = st.sampled_from([True, True, True, False])


def number() -> int:
    return DRAW.choice((0, 1, 2, 3, 2**63))


def nearly(size: int) -> int:
    """That size, or one beside it."""
    return DRAW.choice((size, size, size, size, size + 1, max(0, size - 1)))


def maybe() -> bool:
    return DRAW.random() < 0.5


def mostly_right() -> bool:
    """Else no session would live for long."""
    return DRAW.random() < 0.8


def right_chunk(call_id: int) -> pb.Chunk:
    """The whole of a transfer, or its begin."""
    sizes = DRAW.choices((0, 1, 3, 20), k=DRAW.randint(1, 2))
    is_whole = maybe()
    start = pb.TransferStart(
        part_sizes=sizes, kind=DRAW.randrange(4), outcome=DRAW.randrange(3), encoding=0
    )
    data = bytes(sum(sizes) if is_whole else 0)
    return pb.Chunk(call_id=call_id, start=start, data=data, last=is_whole)


def chunk() -> pb.Chunk:
    start = pb.TransferStart(
        part_sizes=DRAW.choices((0, 1, 3, 40, 2**63), k=DRAW.randrange(4)),
        writable_parts=DRAW.choices(range(4), k=DRAW.randrange(3)),
        target=DRAW.randrange(3),
        kind=DRAW.randrange(6),
        encoding=DRAW.randrange(6),
        outcome=DRAW.randrange(5),
        timeout_us=DRAW.choice((0, 1, 2**63)),
    )
    return pb.Chunk(
        call_id=number(),
        start=start if maybe() else None,
        data=DRAW.randbytes(DRAW.randrange(6)),
        last=maybe(),
        abandoned=maybe(),
    )


def calls() -> bytes:
    """A frame of calls."""
    size = DRAW.randrange(4)
    if mostly_right():
        ids = DRAW.sample(range(1, 10_000), size + 1)
        batch = pb.CallBatch(
            chunk=right_chunk(ids.pop()) if maybe() else None,
            targets=[pb.Target(number=0, module="m", function="f")],
            call_ids=ids,
            payloads=[b"payload"] * size,
            kinds=DRAW.choices(range(4), k=size) if maybe() else (),
            encodings=DRAW.choices(range(5), k=size) if maybe() else (),
            timeouts_us=DRAW.choices((0, 1, 2**63), k=size) if maybe() else (),
            credit=DRAW.choice((0, 5)),
        )
        return pb.ConnectRequest(calls=batch).SerializeToString()
    batch = pb.CallBatch(
        credit=DRAW.choice((0, 5, 2**63)),
        chunk=chunk() if maybe() else None,
        call_ids=DRAW.sample((0, 1, 2, 3, 2**63), size) if maybe() else [number()] * size,
        payloads=[b"payload"] * nearly(size),
        cancels=[number() for _ in range(DRAW.randrange(3))],
    )
    if maybe():
        batch.targets.add(number=DRAW.choice((0, 0, 1, 4095, 4096)), module="m", function="f")
    for name, values in (
        ("call_targets", range(3)),
        ("kinds", range(6)),
        ("encodings", range(6)),
        ("timeouts_us", (0, 1, 2**63)),
    ):
        if maybe():
            getattr(batch, name).extend(DRAW.choices(values, k=nearly(size)))
    return pb.ConnectRequest(calls=batch).SerializeToString()


def replies() -> bytes:
    """A frame of replies; the calls that it may be for are 1 and 2."""
    size = DRAW.randrange(3)
    if mostly_right():
        batch = pb.ReplyBatch(
            chunk=right_chunk(DRAW.randint(1, 3)) if maybe() else None,
            call_ids=DRAW.sample((2, 3, 4), size),
            payloads=[b"payload"] * size,
            outcomes=DRAW.choices(range(3), k=size) if maybe() else (),
            credit=DRAW.choice((0, 5)),
        )
        return pb.ConnectResponse(replies=batch).SerializeToString()
    batch = pb.ReplyBatch(
        credit=DRAW.choice((0, 5, 2**63)),
        casts_done=DRAW.choice((0, 0, 1, 9)),
        chunk=chunk() if maybe() else None,
        call_ids=[number() for _ in range(size)],
        payloads=[b"payload"] * nearly(size),
    )
    for name in ("outcomes", "encodings"):
        if maybe():
            getattr(batch, name).extend(DRAW.choices(range(5), k=nearly(size)))
    return pb.ConnectResponse(replies=batch).SerializeToString()


def altered(frame: bytes) -> bytes:
    """The frame with a byte changed, cut off, or with something behind it."""
    way = DRAW.randrange(3)
    if way == 0 or not frame:
        return frame + DRAW.randbytes(DRAW.randint(1, 4))
    position = DRAW.randrange(len(frame))
    if way == 1:
        return frame[:position]
    return frame[:position] + DRAW.randbytes(1) + frame[position + 1 :]


NOISE = [
    *(b"", b"\0" * 17_000, b"\x1a\x80\x80\x80\x80\x10"),
    *(DRAW.randbytes(DRAW.randrange(30)) for _ in range(MADE // 10)),
]
CALLS = [calls() for _ in range(MADE)]
REPLIES = [replies() for _ in range(MADE)]
GREETINGS = [
    pb.ConnectRequest(hello=pb.Hello(node=ALPHA, nonce=b"n" * 32)).SerializeToString(),
    pb.ConnectRequest(ping=pb.Ping(nonce=7)).SerializeToString(),
]
ODD_REQUESTS = [
    *NOISE,
    *map(altered, CALLS),
    *(altered(DRAW.choice(GREETINGS)) for _ in CALLS[::5]),
]
ODD_RESPONSES = [*NOISE, *map(altered, REPLIES)]


# ---------------------------------------------------------------- the machines


class Hostile(RuleBasedStateMachine):
    """What both ends have in common: what they may never do."""

    session: Session
    opened: bool
    answers: frozenset[str]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.events: list[Event] = []
        self.phase = Phase.CONNECTING

    def give(self, frame: bytes) -> None:
        was_over = self.session.phase is Phase.CLOSED
        self.session.receive(frame, self.now)
        new = self.session.take_events()
        assert not (was_over and new)
        for event in new:
            self.told(event)
            self.events.append(event)
        self.listen()

    def told(self, event: Event) -> None:
        raise NotImplementedError

    def heard(self, frame: bytes) -> None:
        raise NotImplementedError

    def listen(self) -> None:
        while (frame := self.session.frame_to_send(self.now)) is not None:
            self.heard(frame)

    @rule(seconds=st.sampled_from([0.1, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)
        self.collect()

    def collect(self) -> None:
        for event in self.session.take_events():
            self.told(event)
            self.events.append(event)
        self.listen()

    @invariant()
    def memory_is_bounded(self) -> None:
        assemblies = self.session._assemblies
        reserved = sum(each.cost for each in assemblies.values())
        assert reserved == self.session._assembly_bytes
        assert len(assemblies) <= 1 or reserved <= LIMITS.max_transfer_bytes

    @invariant()
    def phases_only_grow_and_the_end_is_the_end(self) -> None:
        assert self.session.phase >= self.phase
        self.phase = self.session.phase
        ends = [event for event in self.events if isinstance(event, Closed)]
        assert len(ends) <= 1
        if ends:
            assert self.events[-1] is ends[0]
            assert ends[0].failure is None or ends[0].failure.reason in REASONS

    def teardown(self) -> None:
        self.session.close(None)
        self.collect()


class HostileClient(Hostile):
    """A server's session, and whoever speaks to it."""

    session: ServerSession

    @initialize(knows=st.booleans(), greets=st.booleans())
    def begin(self, knows: bool, greets: bool) -> None:
        self.session = ServerSession(
            Identity(BETA, "instance", "session"),
            CookieAuthenticator(KEY),
            LIMITS,
            handshake_deadline=5.0,
            idle_timeout=60.0,
        )
        self.opened = self.proved = self.is_odd = False
        self.hello: pb.Hello | None = None
        self.challenge: pb.Challenge | None = None
        self.unanswered: list[IncomingCall] = []
        self.answered: set[int] = set()
        if greets or knows:  # else most would never come to the interesting part
            self.say_hello(True)
        if knows:
            self.prove(True)

    @rule(good=SOMETIMES)
    def say_hello(self, good: bool) -> None:
        hello = pb.Hello(
            revision_max=1,
            revision_min=1,
            node=ALPHA,
            target_node=BETA if good else ALPHA,
            nonce=b"n" * 32,
            want_pickle=True,
        )
        if self.hello is None and good and self.session.phase is Phase.HANDSHAKE:
            self.hello = hello
        self.give(pb.ConnectRequest(hello=hello).SerializeToString())

    @rule(good=SOMETIMES)
    def prove(self, good: bool) -> None:
        mac = b"m" * 32
        if good and self.hello is not None and self.challenge is not None:
            transcript = security.transcript(self.hello, self.challenge)
            mac = security.client_proof(KEY, transcript)
            self.proved = True
        proof = pb.AuthProof(mac=mac, window_bytes=100, max_frame_bytes=70_000)
        self.give(pb.ConnectRequest(auth_proof=proof).SerializeToString())

    @rule(frame=st.sampled_from(CALLS))
    def call(self, frame: bytes) -> None:
        self.give(frame)

    @rule()
    def ping(self) -> None:
        self.give(pb.ConnectRequest(ping=pb.Ping(nonce=7)).SerializeToString())

    @rule()
    def go_away(self) -> None:
        self.give(pb.ConnectRequest(go_away=pb.GoAway()).SerializeToString())

    @rule(frame=st.sampled_from(ODD_REQUESTS))
    def odd_frame(self, frame: bytes) -> None:
        self.is_odd = True
        self.give(frame)

    @rule(data=st.data(), outcome=st.sampled_from([VALUE, ERROR]), size=st.sampled_from([0, 40]))
    def answer(self, data: st.DataObject, outcome: int, size: int) -> None:
        if self.unanswered:
            call = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
            self.session.reply(call, outcome, b"answer", [bytes(size)] if size else [])  # type: ignore[arg-type]
            self.collect()

    @rule()
    def leave(self) -> None:
        self.session.leave("Bye.", self.now)
        self.collect()

    def told(self, event: Event) -> None:
        if isinstance(event, Opened):
            assert not self.opened
            assert self.proved
            assert (event.peer, self.session.peer) == (ALPHA, ALPHA)
            self.opened = True
            return
        if isinstance(event, Closed):
            return
        assert self.opened, f"{event} before the welcome"
        if isinstance(event, CallsArrived):
            # What became of a good frame by chance may be one too, of other names.
            assert self.is_odd or all(call.target == ("m", "f", "") for call in event.calls)
            self.unanswered += event.calls
        elif isinstance(event, TransferRefused):
            assert event.reason in ("too_large", "overload")
            self.unanswered.append(event.call)
        else:
            assert isinstance(event, CallsCancelled | Drained)

    def heard(self, frame: bytes) -> None:
        response = pb.ConnectResponse.FromString(frame)
        kind = response.WhichOneof("frame")
        if kind == "challenge":
            assert self.hello is not None
            assert not self.opened
            self.challenge = response.challenge
        elif kind == "go_away":
            reason = response.go_away.reason
            handshake = (pb.ERROR_REASON_INVALID_COOKIE, pb.ERROR_REASON_BAD_NODE)
            assert (reason == pb.ERROR_REASON_UNSPECIFIED) if self.opened else reason in handshake
        else:
            assert self.opened, f"{kind} before the welcome"
            assert kind in ("welcome", "replies", "pong")

    @invariant()
    def casts_stay_within_their_window(self) -> None:
        if self.session.phase is not Phase.CLOSED:
            assert self.session._casts_open + self.session._casts_done <= LIMITS.cast_window

    @invariant()
    def nothing_of_a_stranger_is_kept(self) -> None:
        if not self.opened:
            assert not self.session.running
            assert not self.session._targets
            assert not self.session._assemblies


class HostileServer(Hostile):
    """A client's session with calls under way, and whoever answers it."""

    session: ClientSession

    @initialize(knows=st.booleans())
    def begin(self, knows: bool) -> None:
        self.session = ClientSession(
            Route(ALPHA, BETA), CookieAuthenticator(KEY), LIMITS, connect_deadline=5.0
        )
        self.opened = self.proved = False
        self.hello: pb.Hello | None = None
        self.challenge: pb.Challenge | None = None
        self.ends: dict[int, int] = {}
        for size in (0, 40):
            buffers = [bytes(size)] if size else []
            self.session.submit(Call(("m", "f", ""), b"head", buffers, wake=int), self.now)
        self.session.opened(self.now)
        self.listen()
        if knows:
            self.say_challenge(True)
            self.say_welcome(True)

    @rule(good=SOMETIMES)
    def say_challenge(self, good: bool) -> None:
        node = BETA if good else ALPHA
        challenge = pb.Challenge(revision=1, node=node, nonce=b"s" * 32, instance_id="i")
        if self.challenge is None and good:
            self.challenge = challenge
        self.give(pb.ConnectResponse(challenge=challenge).SerializeToString())

    @rule(good=SOMETIMES)
    def say_welcome(self, good: bool) -> None:
        mac = b"m" * 32
        if good and self.hello is not None and self.challenge is not None:
            mac = security.server_proof(KEY, security.transcript(self.hello, self.challenge))
            self.proved = True
        welcome = pb.Welcome(mac=mac, session_id="s", pickle_allowed=True)
        self.give(pb.ConnectResponse(welcome=welcome).SerializeToString())

    @rule(frame=st.sampled_from(REPLIES))
    def reply(self, frame: bytes) -> None:
        self.give(frame)

    @rule()
    def pong(self) -> None:
        self.give(pb.ConnectResponse(pong=pb.Pong(nonce=7)).SerializeToString())

    @rule(reason=st.integers(0, 15))
    def go_away(self, reason: int) -> None:
        go_away = pb.GoAway(reason=reason, message="Go.")  # type: ignore[arg-type]  # any number
        self.give(pb.ConnectResponse(go_away=go_away).SerializeToString())

    @rule(frame=st.sampled_from(ODD_RESPONSES))
    def odd_frame(self, frame: bytes) -> None:
        self.give(frame)

    @rule()
    def ping(self) -> None:
        if self.session.phase is Phase.READY:
            self.session.ping(7, self.now)
            self.collect()

    def told(self, event: Event) -> None:
        if isinstance(event, Opened):
            assert self.proved
            self.opened = True
        elif isinstance(event, CallsEnded):
            for call in event.calls:
                self.ends[call.id] = self.ends.get(call.id, 0) + 1
                assert self.ends[call.id] == 1
                assert call.state is ENDED
                if not self.opened:  # not a word of a stranger's is an outcome
                    assert call.failure is not None
                    assert call.failure.execution == "not_started"
        elif isinstance(event, CallsReturned):
            for call in event.calls:
                self.ends[call.id] = 1
        else:
            assert isinstance(event, Answered | Drained | Closed)

    def heard(self, frame: bytes) -> None:
        request = pb.ConnectRequest.FromString(frame)
        kind = request.WhichOneof("frame")
        if kind == "hello":
            self.hello = request.hello
        elif kind == "auth_proof":
            assert self.challenge is not None
        else:
            assert self.opened, f"{kind} before the welcome"
            assert kind in ("calls", "ping")

    def teardown(self) -> None:
        super().teardown()
        assert sorted(self.ends) == [1, 2]


@pytest.mark.parametrize("end", [HostileClient, HostileServer])
@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_hostile_frames_have_only_documented_answers(end: type[Hostile], round_number: int):
    run_state_machine_as_test(end, settings=SEQUENCES)
