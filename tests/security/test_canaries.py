"""Nothing of a stranger's is unpickled or imported, whatever it says and wherever it says it.

The pickles sent here import a module and call a function that leaves a trace; the node's process
counts what Python itself tells of every look-up of an unpickler and of every import.
"""

from __future__ import annotations

import base64
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from nodes import COOKIE
from raw_http2 import CONNECT, Line, request
from scale import count, patient, seeded
from victim import NAME, Victim, victim
from waiting import SECONDS, until

from genrpc import rpc, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

MESSAGES = count(10_000, 1_000_000)
AT_ONCE = 100
"""Streams at a time: fewer than would be refused for their number alone."""

SERVICE = "/genrpc.v1.NodeService/"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
OTHERS = (REFLECTION, "/grpc.health.v1.Health/Check", "/genrpc.v1.NodeService/Nothing", "/x")

CANARIES = (
    b"ccanary\nsing\n(tR.",
    b"\x80\x04\x8c\x06canary\x8c\x04sing\x93)R.",
    b"\x80\x05\x95\x12\0\0\0\0\0\0\0\x8c\x06canary\x8c\x04sing\x93)R.",
    b"\x80\x02ccanary\nsing\n)\x81}b.",
    pickle.dumps([["x"], {}], 2)[:-1] + b"0ccanary\nsing\n(tR.",
)


def mfa(draw: random.Random, canary: bytes) -> pb.Mfa:
    made = pb.Mfa(module=draw.choice(("canary", "math", "genrpc")), function="sing")
    kind = draw.randrange(3)
    if kind == 0:
        made.encoded.content_type = "application/x-python-pickle"
        made.encoded.data = canary
        made.encoded.buffers.append(canary)
    elif kind == 1:
        made.terms.args.add(bytes_value=canary)
    else:
        made.args.values.add(string_value=canary.decode("latin-1"))
    return made


def unary(draw: random.Random, canary: bytes) -> tuple[str, list[bytes]]:
    """A request of a unary method."""
    method = draw.choice(("Call", "Cast", "ListFunctions", "GetStatus"))
    asked: dict[str, Callable[[], bytes]] = {
        "Call": lambda: pb.CallRequest(
            mfa=mfa(draw, canary), reply_encoding=pb.REPLY_ENCODING_PICKLE
        ).SerializeToString(),
        "Cast": lambda: pb.CastRequest(mfa=mfa(draw, canary)).SerializeToString(),
        "ListFunctions": lambda: pb.ListFunctionsRequest(prefix="canary").SerializeToString(),
        "GetStatus": lambda: canary,
    }
    return SERVICE + method, [draw.choice((asked[method](), canary))]


def frame_of(draw: random.Random, canary: bytes, kind: str) -> bytes:
    """A frame of the peer stream with a canary wherever one fits."""
    if kind == "hello":
        said = pb.Hello(
            revision_max=1,
            revision_min=1,
            node="stranger@127.0.0.1",
            target_node=draw.choice((NAME, "other@127.0.0.1", canary.decode("latin-1"))),
            nonce=draw.choice((draw.randbytes(32), canary, canary.ljust(32)[:32])),
            content_types=["application/x-python-pickle"],
            shard_key=draw.choice(("", canary.decode("latin-1"))),
            want_pickle=True,
        )
        return pb.ConnectRequest(hello=said).SerializeToString()
    if kind == "auth_proof":
        proof = pb.AuthProof(mac=draw.choice((canary, canary.ljust(32)[:32], bytes(32))))
        return pb.ConnectRequest(auth_proof=proof).SerializeToString()
    if kind == "calls":
        batch = pb.CallBatch(
            targets=[pb.Target(number=0, module="canary", function="sing")],
            call_ids=[1, 2],
            payloads=[canary, canary],
            kinds=[pb.CALL_KIND_UNSPECIFIED, pb.CALL_KIND_CAST],
        )
        return pb.ConnectRequest(calls=batch).SerializeToString()
    if kind == "chunk":
        start = pb.TransferStart(part_sizes=[len(canary), len(canary)], kind=draw.randrange(4))
        chunk = pb.Chunk(call_id=1, start=start, data=canary * 2, last=True)
        batch = pb.CallBatch(
            targets=[pb.Target(number=0, module="canary", function="sing")], chunk=chunk
        )
        return pb.ConnectRequest(calls=batch).SerializeToString()
    if kind == "ping":
        return pb.ConnectRequest(ping=pb.Ping(nonce=1)).SerializeToString()
    if kind == "go_away":
        said = pb.GoAway(message=canary.decode("latin-1"))
        return pb.ConnectRequest(go_away=said).SerializeToString()
    return canary


KINDS = ("hello", "auth_proof", "calls", "chunk", "ping", "go_away", "bare pickle")


def stream(draw: random.Random, canary: bytes) -> tuple[str, list[bytes]]:
    """A peer stream: frames of any kind in any order, often after a hello that is good."""
    frames = [frame_of(draw, canary, draw.choice(KINDS)) for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.5:
        frames.insert(0, good_hello(draw))
    return CONNECT, frames


def good_hello(draw: random.Random) -> bytes:
    said = pb.Hello(
        revision_max=1,
        revision_min=1,
        node="stranger@127.0.0.1",
        target_node=NAME,
        nonce=draw.randbytes(32),
        want_pickle=True,
    )
    return pb.ConnectRequest(hello=said).SerializeToString()


def authorization(draw: random.Random, canary: bytes) -> Sequence[tuple[str, bytes]]:
    """No token, or one that is none."""
    text = base64.urlsafe_b64encode(canary).decode().rstrip("=")
    foreign = security.make_token(security.Cookie("another cookie of 16"), now=time.time())
    tokens = ("", text, f"g1.{text}.{text}", foreign)
    token = draw.choice(tokens)
    return [("authorization", f"Bearer {token}".encode())] if token else []


def said_by_strangers(draw: random.Random) -> Iterator[tuple[int, str, list[bytes], Sequence]]:
    """Give without end: the number of messages, the method, the messages, the metadata."""
    while True:
        canary = draw.choice(CANARIES)
        kind = draw.random()
        if kind < 0.6:
            path, messages = stream(draw, canary)
        elif kind < 0.9:
            path, messages = unary(draw, canary)
        else:
            path, messages = draw.choice(OTHERS), [canary]
        yield len(messages), path, messages, authorization(draw, canary)


def warm(node: Victim) -> None:
    """Have everything imported that an honest node imports sooner or later."""
    assert node.is_alive()
    node.peer.status_of(node.dest)
    node.peer.functions_of(node.dest, "math.")
    assert rpc.call(node.dest, "math", "sqrt", [4.0], via=node.peer) == 2.0
    draw = random.Random(0)
    strangers = said_by_strangers(draw)
    with Line(node.address).open() as line:
        for _ in range(200):
            _, path, messages, metadata = next(strangers)
            number = line.stream()
            line.send(request(number, path, messages, metadata))
            line.wait_for([number])


@patient
@pytest.mark.slow
def test_nothing_of_a_stranger_is_unpickled_imported_or_run():
    draw = seeded("canaries")
    # The address of all strangers here is one; what its limit does is tested elsewhere.
    with victim(max_pending_handshakes_per_address=1000, max_pending_handshakes=1000) as node:
        warm(node)
        node.ask("arm")
        strangers, sent = said_by_strangers(draw), 0
        while sent < MESSAGES:
            with Line(node.address).open() as line:
                numbers = []
                for _ in range(AT_ONCE):
                    messages, path, said, metadata = next(strangers)
                    numbers.append(line.stream())
                    line.send(request(numbers[-1], path, said, metadata))
                    sent += messages
                line.wait_for(numbers)
        assert node.is_alive()
        report = node.ask("report")
        assert report["canary"] is None
        assert report["found"] == []
        assert report["imported"] == []
        assert report["statistics"]["audit_refused_authentication"] > MESSAGES // 4
        until(node.is_alone)


def test_the_canary_sings_for_those_who_may():
    """The proof of the proof: the same pickle by a peer with the cookie is seen by all of them."""
    with victim() as node:
        warm(node)
        node.ask("arm")
        for canary in CANARIES:
            key = node.peer.promise(node.dest, "math", "sqrt", encoded=(canary, []))
            assert key.exception(SECONDS) is not None
        report = node.ask("report")
        assert report["canary"] == "sung"
        assert len(report["found"]) == len(CANARIES)
        assert report["imported"] == ["canary"]


def test_bearers_of_a_good_token_cannot_send_a_canary_either():
    token = security.make_token(security.Cookie(COOKIE), now=time.time())
    metadata = [("authorization", f"Bearer {token}".encode())]
    draw = seeded("tokens")
    with victim(rpc_module_control="whitelist", rpc_module_list=["math"]) as node:
        warm(node)
        node.ask("arm")
        for _ in range(5):
            with Line(node.address).open() as line:
                numbers = []
                for _ in range(AT_ONCE):
                    numbers.append(line.stream())
                    path, messages = unary(draw, draw.choice(CANARIES))
                    line.send(request(numbers[-1], path, messages, metadata))
                line.wait_for(numbers)
        report = node.ask("report")
        assert (report["canary"], report["found"], report["imported"]) == (None, [], [])
