"""The cookie is proved, or the stream is over: by both ends, whatever is sent for a proof.

The real sessions with the real cookie, joined by hand; the numbers that a handshake draws at
random are those that it would draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from genrpc import security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.authentication import CookieAuthenticator
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.events import Closed, Event, Opened
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Limits, Phase

COOKIE = security.Cookie("0123456789abcdef0123456789abcdef")
OTHER_COOKIE = security.Cookie("fedcba9876543210fedcba9876543210")
ALPHA, BETA, GAMMA = "alpha@127.0.0.1", "beta@127.0.0.1", "gamma@127.0.0.1"


def client(
    node: str = ALPHA, target: str = BETA, key: str = "", cookie: security.Cookie = COOKIE
) -> ClientSession:
    made = ClientSession(Route(node, target, key), CookieAuthenticator(cookie.key), Limits())
    made.opened(0.0)
    return made


def server(node: str = BETA, cookie: security.Cookie = COOKIE) -> ServerSession:
    return ServerSession(
        Identity(node, "instance", "session"), CookieAuthenticator(cookie.key), Limits()
    )


def said(session: ClientSession | ServerSession) -> bytes:
    frame = session.frame_to_send(0.0)
    assert frame is not None
    return frame


@dataclass
class Handshake:
    """A handshake up to the client's proof, which waits to be delivered."""

    client: ClientSession
    server: ServerSession
    hello: pb.Hello
    challenge: pb.Challenge
    proof: pb.AuthProof

    @property
    def mac(self) -> bytes:
        return self.proof.mac

    def prove(self, mac: bytes) -> list[Event]:
        """Deliver a client's proof; what the server tells."""
        frame = pb.ConnectRequest(auth_proof=pb.AuthProof(mac=mac)).SerializeToString()
        self.server.receive(frame, 0.0)
        return self.server.take_events()

    def welcome(self, mac: bytes) -> list[Event]:
        """Deliver a server's proof; what the client tells."""
        frame = pb.ConnectResponse(welcome=pb.Welcome(mac=mac)).SerializeToString()
        self.client.receive(frame, 0.0)
        return self.client.take_events()

    def servers_mac(self) -> bytes:
        """Let the server prove itself, as it does when the client has; returns the proof."""
        self.prove(self.mac)
        return pb.ConnectResponse.FromString(said(self.server)).welcome.mac


def shake(one: ClientSession | None = None, other: ServerSession | None = None) -> Handshake:
    one, other = one or client(), other or server()
    hello = said(one)
    other.receive(hello, 0.0)
    challenge = said(other)
    one.receive(challenge, 0.0)
    proof = said(one)
    return Handshake(
        one,
        other,
        pb.ConnectRequest.FromString(hello).hello,
        pb.ConnectResponse.FromString(challenge).challenge,
        pb.ConnectRequest.FromString(proof).auth_proof,
    )


def assert_refused(session: ClientSession | ServerSession, events: list[Event]) -> None:
    """The stream is over, for this reason, and nothing that comes later is looked at."""
    (event,) = events
    assert isinstance(event, Closed)
    assert event.failure is not None
    assert event.failure.reason == "invalid_cookie"
    assert session.phase is Phase.CLOSED
    if isinstance(session, ServerSession):
        assert session.peer == ""
        answer = pb.ConnectResponse.FromString(said(session))
        assert answer.go_away.reason == pb.ERROR_REASON_INVALID_COOKIE
    assert session.frame_to_send(0.0) is None
    batch = pb.CallBatch(
        targets=[pb.Target(module="math", function="sqrt")], call_ids=[1], payloads=[b""]
    )
    session.receive(pb.ConnectRequest(calls=batch).SerializeToString(), 0.0)
    assert session.take_events() == []


def flipped(mac: bytes, bit: int) -> bytes:
    number = int.from_bytes(mac, "big") ^ (1 << bit)
    return number.to_bytes(len(mac), "big")


def of_length(mac: bytes, length: int) -> bytes:
    return (mac + mac)[:length]


BOTH = pytest.mark.parametrize("end", ["server", "client"])


def try_proof(end: str, change: object) -> None:
    """Let one end be given a changed proof instead of the right one, and refuse it."""
    assert callable(change)
    made = shake()
    if end == "server":
        assert_refused(made.server, made.prove(change(made.mac)))
    else:
        assert_refused(made.client, made.welcome(change(made.servers_mac())))


def test_right_proofs_are_taken_by_both_ends():
    made = shake()
    assert made.welcome(made.servers_mac()) == [Opened("", BETA)]
    assert made.server.peer == ALPHA


@BOTH
@pytest.mark.parametrize("length", [n for n in range(65) if n != 32])
def test_proof_of_another_length_is_refused(end, length):
    try_proof(end, lambda mac: of_length(mac, length))


@BOTH
def test_proof_with_any_one_bit_flipped_is_refused(end):
    for bit in range(256):
        try_proof(end, lambda mac, bit=bit: flipped(mac, bit))


@BOTH
@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_constant_proof_is_refused(end, byte):
    try_proof(end, lambda mac: bytes([byte]) * 32)


def test_clients_proof_reflected_by_whoever_answers_is_refused():
    made = shake()
    assert_refused(made.client, made.welcome(made.mac))


def test_servers_proof_is_none_of_a_clients():
    """Whoever gets a server to prove itself cannot use that proof as a client."""
    made = shake()
    mac = security.server_proof(COOKIE.key, security.transcript(made.hello, made.challenge))
    assert_refused(made.server, made.prove(mac))


def test_proof_of_another_session_is_refused():
    """Recorded and replayed: each session has nonces of its own."""
    first = shake()
    second = shake(client(), server())
    assert_refused(second.server, second.prove(first.mac))
    third = shake()
    assert_refused(third.client, third.welcome(first.servers_mac()))


def test_whole_conversation_replayed_is_refused():
    recorded = shake()
    fresh = server()
    fresh.receive(pb.ConnectRequest(hello=recorded.hello).SerializeToString(), 0.0)
    said(fresh)
    fresh.receive(pb.ConnectRequest(auth_proof=recorded.proof).SerializeToString(), 0.0)
    assert_refused(fresh, fresh.take_events())


@pytest.mark.parametrize(
    "changes",
    [{"node": GAMMA}, {"shard_key": "other"}, {"want_pickle": False}, {"content_types": ["x"]}],
    ids=lambda changes: next(iter(changes)),
)
def test_proof_for_another_hello_is_refused(changes):
    """Somebody between the two changes what the client said, or speaks for another node."""
    one, other = client(), server()
    hello = pb.ConnectRequest.FromString(said(one)).hello
    altered = pb.Hello()
    altered.CopyFrom(hello)
    for name, value in changes.items():
        altered.ClearField(name)
        altered.MergeFrom(pb.Hello(**{name: value}))
    other.receive(pb.ConnectRequest(hello=altered).SerializeToString(), 0.0)
    one.receive(said(other), 0.0)
    other.receive(said(one), 0.0)
    assert_refused(other, other.take_events())


@pytest.mark.parametrize("changes", [{"nonce": bytes(32)}, {"instance_id": "other"}])
def test_proof_for_another_challenge_is_refused(changes):
    one, other = client(), server()
    other.receive(said(one), 0.0)
    challenge = pb.ConnectResponse.FromString(said(other)).challenge
    for name, value in changes.items():
        setattr(challenge, name, value)
    one.receive(pb.ConnectResponse(challenge=challenge).SerializeToString(), 0.0)
    other.receive(said(one), 0.0)
    assert_refused(other, other.take_events())


def test_proof_of_another_cookie_is_refused_by_both_ends():
    made = shake(client(cookie=OTHER_COOKIE))
    assert_refused(made.server, made.prove(made.mac))
    made = shake(client(cookie=OTHER_COOKIE))
    mac = security.server_proof(COOKIE.key, security.transcript(made.hello, made.challenge))
    assert_refused(made.client, made.welcome(mac))


def test_hello_for_another_node_is_answered_badnode_without_a_challenge():
    other = server(GAMMA)
    other.receive(said(client(target=BETA)), 0.0)
    answer = pb.ConnectResponse.FromString(said(other))
    assert answer.go_away.reason == pb.ERROR_REASON_BAD_NODE
    assert other.phase is Phase.CLOSED


def test_challenge_of_another_node_is_not_answered_with_a_proof():
    one = client(target=BETA)
    said(one)
    challenge = pb.Challenge(revision=1, node=GAMMA, nonce=bytes(32))
    one.receive(pb.ConnectResponse(challenge=challenge).SerializeToString(), 0.0)
    (event,) = one.take_events()
    assert isinstance(event, Closed)
    assert event.failure.reason == "badnode"
    assert one.frame_to_send(0.0) is None


def test_equal_nonces_end_the_handshake():
    """Else a client could be its own server, or be made to sign what it was given."""
    one = client()
    hello = pb.ConnectRequest.FromString(said(one)).hello
    challenge = pb.Challenge(revision=1, node=BETA, nonce=hello.nonce)
    one.receive(pb.ConnectResponse(challenge=challenge).SerializeToString(), 0.0)
    (event,) = one.take_events()
    assert isinstance(event, Closed)
    assert event.failure.reason == "corrupt_data"
    assert one.frame_to_send(0.0) is None


def test_client_before_a_node_that_is_itself_proves_nothing_that_would_serve():
    """A proof that was asked for under one name is worth nothing under another."""
    made = shake(client(ALPHA, BETA), server(BETA))
    victim = server(GAMMA)
    hello = pb.Hello()
    hello.CopyFrom(made.hello)
    hello.target_node = GAMMA
    victim.receive(pb.ConnectRequest(hello=hello).SerializeToString(), 0.0)
    said(victim)
    victim.receive(pb.ConnectRequest(auth_proof=made.proof).SerializeToString(), 0.0)
    assert_refused(victim, victim.take_events())


def test_second_hello_and_second_proof_are_out_of_turn():
    made = shake()
    made.server.receive(pb.ConnectRequest(hello=made.hello).SerializeToString(), 0.0)
    (event,) = made.server.take_events()
    assert isinstance(event, Closed)
    assert event.failure.reason == "corrupt_data"
    made = shake()
    assert isinstance(made.prove(made.mac)[0], Opened)
    (event,) = made.prove(made.mac)
    assert isinstance(event, Closed)
