"""A fake wire: joins the sessions of a client and a server, without loop, clock or network.

Frames lie in two queues until a test delivers them, and the time is what the test says. What
the sessions tell is collected in the order in which it was told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

from genrpc import security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP
from genrpc.protocol import frames
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.events import CallsArrived, CallsEnded, Event
from genrpc.protocol.pending import (
    CALL,
    PICKLE,
    VALUE,
    Buffer,
    Call,
    IncomingCall,
    Target,
)
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Limits, Session

if TYPE_CHECKING:
    from genrpc.protocol.pending import Encoding, Kind

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For every property here. Hypothesis' own profile for CI adds that it is the same each time."""

ALPHA, BETA = "alpha@127.0.0.1", "beta@127.0.0.1"
COOKIE = b"0123456789abcdef0123456789abcdef"
TARGET = ("math", "factorial", "")
CLOSED = BadTCP("closed")


class CookieAuthenticator:
    """The real proofs of a cookie, with a nonce that is the same in every run."""

    def __init__(self, cookie: bytes = COOKIE, nonce: bytes = b"c" * 32) -> None:
        self.key = security.derive_key(cookie)
        self.nonce = nonce

    def new_nonce(self) -> bytes:
        return self.nonce

    def hello_fault(self, hello: pb.Hello, node: str) -> tuple[str, str] | None:
        return security.hello_fault(hello, node)

    def challenge_fault(self, hello: pb.Hello, challenge: pb.Challenge) -> tuple[str, str] | None:
        return security.challenge_fault(hello, challenge)

    def client_proof(self, hello: pb.Hello, challenge: pb.Challenge) -> bytes:
        return security.client_proof(self.key, security.transcript(hello, challenge))

    def server_proof(self, hello: pb.Hello, challenge: pb.Challenge) -> bytes:
        return security.server_proof(self.key, security.transcript(hello, challenge))

    def matches(self, expected: bytes, given: bytes) -> bool:
        return security.matches(expected, given)


def make_client(
    limits: Limits | None = None,
    *,
    target_node: str = BETA,
    cookie: bytes = COOKIE,
    connect_deadline: float | None = None,
    idle_timeout: float | None = None,
) -> ClientSession:
    return ClientSession(
        Route(ALPHA, target_node, "key"),
        CookieAuthenticator(cookie, b"c" * 32),
        limits or Limits(),
        connect_deadline=connect_deadline,
        idle_timeout=idle_timeout,
    )


def make_server(
    limits: Limits | None = None,
    *,
    handshake_deadline: float | None = None,
    idle_timeout: float | None = None,
    max_age: float | None = None,
) -> ServerSession:
    return ServerSession(
        Identity(BETA, "i-1", "s-1"),
        CookieAuthenticator(nonce=b"s" * 32),
        limits or Limits(),
        handshake_deadline=handshake_deadline,
        idle_timeout=idle_timeout,
        max_age=max_age,
    )


def make_call(
    head: bytes = b"args",
    buffers: Sequence[Buffer] = (),
    *,
    target: Target = TARGET,
    kind: Kind = CALL,
    encoding: Encoding = PICKLE,
    deadline: float | None = None,
    send_timeout: float | None = None,
) -> Call:
    return Call(
        target,
        head,
        buffers,
        kind=kind,
        encoding=encoding,
        deadline=deadline,
        send_timeout=send_timeout,
        wake=lambda: None,
    )


class Wire:
    """Two sessions, the frames between them, and all that they told so far."""

    def __init__(
        self, client: ClientSession | None = None, server: ServerSession | None = None
    ) -> None:
        self.client = client or make_client()
        self.server = server or make_server()
        self.now = 0.0
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []

    def open(self) -> Wire:
        """Open the stream and go through the handshake."""
        self.client.opened(self.now)
        self.settle()
        return self

    # -------------------------------------------------- one step; False: there was nothing to do

    def client_sends(self) -> bool:
        return self._sends(self.client, self.to_server)

    def server_sends(self) -> bool:
        return self._sends(self.server, self.to_client)

    def server_receives(self) -> bool:
        return self._receives(self.server, self.to_server)

    def client_receives(self) -> bool:
        return self._receives(self.client, self.to_client)

    def _sends(self, session: Session, queue: deque[bytes]) -> bool:
        frame = session.frame_to_send(self.now)
        if frame is not None:
            queue.append(frame)
        self.collect()
        return frame is not None

    def _receives(self, session: Session, queue: deque[bytes]) -> bool:
        if not queue:
            return False
        session.receive(queue.popleft(), self.now)
        self.collect()
        return True

    # -------------------------------------------------- many steps

    def settle(self) -> None:
        """Let all frames go, both ways, until neither side has anything to say."""
        steps = (self.client_sends, self.server_receives, self.server_sends, self.client_receives)
        moved = True
        while moved:
            moved = False
            for step in steps:
                moved = step() or moved

    def at(self, now: float) -> None:
        """Let the time be `now`."""
        self.now = now
        self.client.tick(now)
        self.server.tick(now)
        self.collect()

    def collect(self) -> None:
        self.client_events += self.client.take_events()
        self.server_events += self.server.take_events()

    def submit(self, *calls: Call) -> None:
        for call in calls:
            self.client.submit(call, self.now)
        self.collect()

    def reply(self, call: IncomingCall, head: bytes = b"", buffers: Sequence[Buffer] = ()) -> None:
        self.server.reply(call, VALUE, head, buffers)
        self.collect()

    # -------------------------------------------------- what was told

    @property
    def arrived(self) -> list[IncomingCall]:
        """All calls and casts that the server was told of, in order."""
        return [
            call
            for event in self.server_events
            if isinstance(event, CallsArrived)
            for call in event.calls
        ]

    @property
    def ended(self) -> list[Call]:
        """All calls and casts of which the client was told that they ended, in order."""
        return [
            call
            for event in self.client_events
            if isinstance(event, CallsEnded)
            for call in event.calls
        ]


def requests(session: ClientSession, now: float = 0.0) -> list[pb.ConnectRequest]:
    """Take all frames that a client has to send, as protobuf reads them."""
    found = []
    while (frame := session.frame_to_send(now)) is not None:
        found.append(frames.decode_request(frame))
    return found


def responses(session: ServerSession, now: float = 0.0) -> list[pb.ConnectResponse]:
    """Take all frames that a server has to send, as protobuf reads them."""
    found = []
    while (frame := session.frame_to_send(now)) is not None:
        found.append(frames.decode_response(frame))
    return found


def replies(**fields: object) -> bytes:
    """Make a frame of replies from the fields of a ReplyBatch."""
    batch = pb.ReplyBatch(**fields)  # type: ignore[arg-type]  # fields by keyword
    return pb.ConnectResponse(replies=batch).SerializeToString()


def calls(**fields: object) -> bytes:
    """Make a frame of calls from the fields of a CallBatch."""
    batch = pb.CallBatch(**fields)  # type: ignore[arg-type]  # fields by keyword
    return pb.ConnectRequest(calls=batch).SerializeToString()


def failure_of(call: Call) -> tuple[object, str] | None:
    """Tell a call's failure with its execution, which equality leaves out."""
    failure: BadRPC | BadTCP | None = call.failure
    return None if failure is None else (failure, failure.execution)
