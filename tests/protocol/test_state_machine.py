"""Anything may happen to two sessions, in any order: what is promised holds all the same.

Calls and casts of all kinds are made, cancelled and answered (late, too), the time passes,
frames are held or delivered on either side, the server leaves, the stream is lost. After each
step: every call has ended at most once; what ended as "not_started" never arrives; ordered
casts and small calls arrive in order; payloads are whole; neither side broke the protocol. In
the end: every call has ended exactly once.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from wire import Wire, make_call, make_client, make_server

from genrpc.errors import BadTCP
from genrpc.protocol.events import (
    CallsArrived,
    CallsCancelled,
    CallsEnded,
    CallsReturned,
    Closed,
    Drained,
    Event,
    TransferRefused,
)
from genrpc.protocol.pending import (
    BLOCK_CALL,
    CALL,
    CAST,
    ENDED,
    ERROR,
    ORDERED_CAST,
    THROWN,
    VALUE,
    WAITING,
    Call,
    IncomingCall,
)
from genrpc.protocol.session import Limits, Phase

LIMITS = Limits(
    chunk_bytes=7,
    window_bytes=20,
    cast_window=3,
    max_queued_casts=6,
    max_queued_bytes=150,
    max_message_bytes=60,
    max_transfer_bytes=1100,  # of two at once
)

# Bytes of the buffer: without one, the call is small; the last one is over max_message_bytes.
sizes = st.sampled_from([None, None, 0, 5, 30, 70])
durations = st.sampled_from([None, 1.0, 3.0])


class Peers(RuleBasedStateMachine):
    """Two sessions and a model of what each call may have become."""

    def __init__(self) -> None:
        super().__init__()
        client = make_client(LIMITS, connect_deadline=20.0, idle_timeout=15.0)
        self.wire = Wire(client, make_server(LIMITS, max_age=40.0, idle_timeout=12.0))
        self.made: dict[int, Call] = {}
        self.content: dict[int, tuple[bytes, list[bytes]]] = {}
        self.ends: dict[int, int] = {}
        self.returned: set[int] = set()
        self.arrived: dict[int, IncomingCall] = {}
        self.unanswered: list[IncomingCall] = []
        self.answers: dict[int, tuple[bytes, list[bytes]]] = {}
        self.last_small = self.last_ordered = 0
        self.seen = [0, 0]
        self.lost = self.finishing = False
        self.phases = (Phase.CONNECTING, Phase.HANDSHAKE)

    # ------------------------------------------------------------ what the caller does

    @precondition(lambda self: self.wire.client.phase <= Phase.READY and not self.finishing)
    @rule(
        kind=st.sampled_from([CALL, CALL, BLOCK_CALL, CAST, ORDERED_CAST, ORDERED_CAST]),
        size=sizes,
        timeout=durations,
        send_timeout=durations,
    )
    def submit(
        self, kind: int, size: int | None, timeout: float | None, send_timeout: float | None
    ) -> None:
        wire = self.wire
        number = len(self.made) + 1
        head = f"call {number}".encode()
        buffers = [] if size is None else [bytes([number % 256]) * size]
        is_call = kind in (CALL, BLOCK_CALL)
        call = make_call(
            head,
            buffers,
            target=(f"m{number % 3}", "f", ""),
            kind=kind,  # type: ignore[arg-type]  # a number of the enum
            deadline=wire.now + timeout if timeout and is_call else None,
            send_timeout=send_timeout if is_call else None,
        )
        wire.client.submit(call, wire.now)
        assert call.id == number
        self.made[number], self.content[number] = call, (head, buffers)
        self.look()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.wire.client.cancel(self.made[data.draw(st.integers(1, len(self.made)))])
        self.look()

    @precondition(lambda self: len(self.made) > 5)
    @rule()
    def finish(self) -> None:
        self.finishing = True
        self.wire.client.finish(BadTCP("closed"))
        self.look()
        assert not self.open_calls()

    @precondition(lambda self: self.wire.client.phase is Phase.READY)
    @rule()
    def ping(self) -> None:
        self.wire.client.ping(1, self.wire.now)

    # ------------------------------------------------------------ what the callee does

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), size=sizes, outcome=st.sampled_from([VALUE, ERROR, THROWN]))
    def answer(self, data: st.DataObject, size: int | None, outcome: int) -> None:
        call = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
        head = f"answer {call.id}".encode()
        buffers = [] if size is None else [bytes([call.id % 256]) * size]
        self.answers[call.id] = (head, buffers)
        self.wire.server.reply(call, outcome, head, buffers)  # type: ignore[arg-type]  # a number
        self.look()

    @rule()
    def server_leaves(self) -> None:
        self.wire.server.leave("Bye.", self.wire.now)
        self.look()

    # ------------------------------------------------------------ what happens to the stream

    @precondition(lambda self: self.wire.client.phase is Phase.CONNECTING)
    @rule()
    def open(self) -> None:
        self.wire.client.opened(self.wire.now)

    @rule(times=st.integers(1, 4))
    def client_sends(self, times: int) -> None:
        for _ in range(times):
            self.wire.client_sends()
        self.look()

    @rule(times=st.integers(1, 4))
    def server_sends(self, times: int) -> None:
        for _ in range(times):
            self.wire.server_sends()
        self.look()

    @rule(times=st.integers(1, 4))
    def server_receives(self, times: int) -> None:
        for _ in range(times):
            self.wire.server_receives()
            self.look()

    @rule(times=st.integers(1, 4))
    def client_receives(self, times: int) -> None:
        for _ in range(times):
            self.wire.client_receives()
            self.look()

    @rule()
    def everything_goes(self) -> None:
        self.wire.settle()
        self.look()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        wire = self.wire
        wire.at(wire.now + seconds)
        self.look()
        for session in (wire.client, wire.server):
            deadline = session.next_deadline()
            # What is due was done: no timer is asked for that would come at once, for ever.
            assert deadline is None or deadline > wire.now or session is wire.client
        due = wire.client.next_deadline()
        if due is not None and due <= wire.now:  # early, for the sake of a call that ended
            assert wire.client.pending.next_check() == due

    @precondition(lambda self: len(self.made) > 5)
    @rule()
    def stream_is_lost(self) -> None:
        wire = self.wire
        self.lost = True
        wire.to_client.clear()
        wire.to_server.clear()
        wire.client.close(BadTCP("closed"))
        wire.server.close(BadTCP("closed"))
        wire.collect()
        self.look()
        assert not self.open_calls()

    # ------------------------------------------------------------ what is promised

    def look(self) -> None:
        """Take note of what the sessions told since the last look."""
        self.wire.collect()
        for event in self.wire.client_events[self.seen[0] :]:
            self.client_told(event)
        for event in self.wire.server_events[self.seen[1] :]:
            self.server_told(event)
        self.seen = [len(self.wire.client_events), len(self.wire.server_events)]

    def client_told(self, event: Event) -> None:
        if isinstance(event, CallsEnded):
            for call in event.calls:
                self.call_ended(call)
        elif isinstance(event, CallsReturned):
            for call in event.calls:
                assert call.state is WAITING
                assert call.id not in self.arrived
                self.returned.add(call.id)
        elif isinstance(event, Drained):
            assert self.wire.client.phase is Phase.LEAVING
            assert not self.open_calls()
        elif isinstance(event, Closed) and event.failure is not None:
            assert event.failure.reason in ("closed", "connect_timeout")

    def call_ended(self, call: Call) -> None:
        self.ends[call.id] = self.ends.get(call.id, 0) + 1
        assert call.state is ENDED
        if call.failure is None:
            head, buffers = self.answers[call.id]
            assert (call.head, list(call.buffers)) == (head, buffers)
        elif call.failure.execution == "not_started":
            assert call.id not in self.arrived

    def server_told(self, event: Event) -> None:
        if isinstance(event, CallsArrived):
            for call in event.calls:
                self.call_arrived(call)
        elif isinstance(event, CallsCancelled):
            for call in event.calls:
                assert self.arrived[call.id] is call
                call.cancelled = True
        else:
            assert not isinstance(event, TransferRefused)  # the client does not even try
            if isinstance(event, Closed):
                assert event.failure in (None, BadTCP("closed"))

    def call_arrived(self, incoming: IncomingCall) -> None:
        call = self.made[incoming.id]
        assert incoming.id not in self.arrived
        assert incoming.id not in self.returned
        assert call.failure is None or call.failure.execution != "not_started"
        assert incoming.target == call.target
        head, buffers = self.content[incoming.id]
        assert (incoming.head, list(incoming.buffers)) == (head, buffers)
        if incoming.kind == ORDERED_CAST:
            assert incoming.id > self.last_ordered
            self.last_ordered = incoming.id
        if not incoming.is_cast and not buffers:
            assert incoming.id > self.last_small
            self.last_small = incoming.id
        self.arrived[incoming.id] = incoming
        self.unanswered.append(incoming)

    def open_calls(self) -> list[Call]:
        """The calls that have not ended, and were not given back."""
        return [
            call
            for call in self.made.values()
            if not (call.is_cast or call.id in self.ends or call.id in self.returned)
        ]

    @invariant()
    def every_call_ends_at_most_once(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        assert not self.returned & self.ends.keys()
        pending = {call.id for call in self.wire.client.pending}
        assert pending == {call.id for call in self.open_calls()}

    @invariant()
    def what_has_ended_stays_ended(self) -> None:
        for number in self.ends:
            assert self.made[number].state is ENDED

    @invariant()
    def phases_only_grow(self) -> None:
        phases = (self.wire.client.phase, self.wire.server.phase)
        assert phases[0] >= self.phases[0]
        assert phases[1] >= self.phases[1]
        self.phases = phases

    @invariant()
    def credit_stays_within_the_window(self) -> None:
        for session in (self.wire.client, self.wire.server):
            assert 0 <= session.transfers.credit <= LIMITS.window_bytes

    @invariant()
    def casts_stay_within_their_window(self) -> None:
        assert 0 <= self.wire.client._casts_open <= LIMITS.cast_window

    def teardown(self) -> None:
        """Let all come to its end: nothing may be left over, on either side."""
        wire = self.wire
        if not self.lost:
            wire.client.opened(wire.now)
            for _ in range(2 * len(self.made) + 5):
                wire.settle()
                self.look()
                for call in self.unanswered:
                    self.answers[call.id] = (b"last", [])
                    wire.server.reply(call, VALUE, b"last")
                self.unanswered.clear()
        assert not self.open_calls()
        if wire.client.phase is not Phase.CLOSED:
            self.nothing_is_left()
        wire.client.close(None)
        wire.server.close(None)
        self.look()
        for events in (wire.client_events, wire.server_events):
            assert [isinstance(event, Closed) for event in events].index(True) == len(events) - 1

    def nothing_is_left(self) -> None:
        """Neither side waits for anything, no credit was lost, each cast came to its end."""
        client, server = self.wire.client, self.wire.server
        assert not client.has_unsent_casts
        if Drained() not in self.wire.client_events:  # else it says and grants nothing more
            assert not client.in_flight
            assert not server.in_flight
            assert client.transfers.credit + server.window._received == LIMITS.window_bytes
            assert server.transfers.credit + client.window._received == LIMITS.window_bytes
        for call in self.made.values():
            failed = call.failure is not None and call.id not in self.arrived
            assert (call.id in self.arrived) + (call.id in self.returned) + failed == 1


TestPeers = Peers.TestCase
TestPeers.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
