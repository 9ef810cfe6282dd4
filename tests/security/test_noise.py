"""Whatever bytes come, to whatever port: the node lives on, and nothing of it stays behind.

Noise, HTTP/2 frames at random, good conversations with bytes changed, and what an authenticated
peer must not send; in the clear and to a node with TLS. After each batch an honest peer gets its
answer; in the end memory and descriptors are what they were. In the long form, strangers say the
same to a server that is grpcio alone, and what that one grows by is not held against the node.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from nodes import COOKIE
from plain_server import PlainServer, plain_server
from raw_http2 import CONNECT, DATA, Line, Socket, frame, message, opening, request
from scale import LONG, count, patient, seeded
from victim import NAME, Victim, victim
from waiting import until

from genrpc import security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

pytestmark = [pytest.mark.slow, patient]

CONVERSATIONS = count(20_000, 2_000_000)
AT_ONCE = 100
"""Connections open at a time."""
BATCH = 2_000
KEPT_MEMORY = 20 * 2**20
SECONDS = 30.0

# Limits of their own have tests of their own; here all are from one address.
MANY = {"max_pending_handshakes": 2000, "max_pending_handshakes_per_address": 2000}
LISTED = {"rpc_module_control": "whitelist", "rpc_module_list": ["math"]}

Draw = random.Random
Kind = Callable[[Draw], bytes]


# ---------------------------------------------------------------- what is said


def noise(draw: Draw) -> bytes:
    return draw.randbytes(draw.choice((1, 9, 24, 100, 1000, 20_000)))


def random_frames(draw: Draw) -> bytes:
    """A good opening, then frames that are frames and nothing more."""
    said = [opening(s4=draw.choice((0, 65_535)))] if draw.random() < 0.9 else [b""]
    for _ in range(draw.randint(1, 20)):
        size = draw.choice((0, 4, 5, 8, 100))
        kind = draw.randrange(12)
        stream = draw.choice((0, 1, 1, 2, 3, 2**31 - 1))
        said.append(frame(kind, draw.randrange(256), stream, draw.randbytes(size)))
    return b"".join(said)


def good(draw: Draw) -> bytes:
    """What a client says that does not know the cookie, or has a token."""
    hello = pb.Hello(
        revision_max=1,
        revision_min=1,
        node="stranger@127.0.0.1",
        target_node=NAME,
        nonce=draw.randbytes(32),
        want_pickle=True,
    )
    frames = [
        pb.ConnectRequest(hello=hello),
        pb.ConnectRequest(auth_proof=pb.AuthProof(mac=draw.randbytes(32))),
        pb.ConnectRequest(ping=pb.Ping(nonce=1)),
    ]
    token = security.make_token(security.Cookie(COOKIE), now=time.time())
    call = pb.CallRequest(mfa=pb.Mfa(module="math", function="sqrt"))
    call.mfa.args.values.add(number_value=draw.choice((4, -1)))
    metadata = [("authorization", f"Bearer {token}".encode())]
    return (
        opening()
        + request(1, CONNECT, [each.SerializeToString() for each in frames])
        + request(3, "/genrpc.v1.NodeService/Call", [call.SerializeToString()], metadata)
        + request(5, "/grpc.health.v1.Health/Check", [b""])
    )


def mutated(draw: Draw) -> bytes:
    return altered(draw, good(draw))


def altered(draw: Draw, data: bytes) -> bytes:
    """Flip, cut out, put in, repeat or exchange, at some places."""
    said = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        if not said:
            break
        begin = draw.randrange(len(said))
        end = min(len(said), begin + draw.choice((1, 1, 4, 50)))
        way = draw.randrange(5)
        if way == 0:
            said[begin] ^= 1 << draw.randrange(8)
        elif way == 1:
            del said[begin:end]
        elif way == 2:
            said[begin:begin] = draw.randbytes(end - begin)
        elif way == 3:
            said[begin:begin] = said[begin:end]
        else:
            said[begin:end] = draw.choice((b"\0", b"\xff")) * (end - begin)
    return bytes(said)


IN_THE_CLEAR: Sequence[Kind] = (noise, random_frames, mutated, mutated)


# ---------------------------------------------------------------- saying it


def say(address: tuple[str, int], kinds: Sequence[Kind], draw: Draw) -> None:
    """Say something on each of many connections, then hang up; wait for the node's end of all."""
    lines = []
    for _ in range(AT_ONCE):
        line = socket.create_connection(address, SECONDS)
        lines.append(line)
        # The node may hang up after the first bytes.
        try_to(line, draw.choice(kinds)(draw))
    wait_for_ends(lines)


def try_to(line: Socket, data: bytes) -> None:
    try:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def wait_for_ends(lines: Sequence[Socket]) -> None:
    """Read what comes until the node has closed all of them."""
    left, deadline = set(lines), time.monotonic() + SECONDS
    while left:
        ready, _, _ = select.select(list(left), [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the node keeps {len(left)} connections that said all they had to say"
        for line in ready:
            line.settimeout(SECONDS)
            if not received(line):
                line.close()
                left.discard(line)


def received(line: Socket) -> bytes:
    try:
        return line.recv(65_536)
    except OSError:
        return b""


class Steady:
    """Whether the node's memory and descriptors stay what they were after its first batch.

    With `plain`, it may grow by what that one has grown by, which heard the same.
    """

    def __init__(self, node: Victim, plain: PlainServer | None = None) -> None:
        self._node = node
        self._plain = plain
        self._memory = self._plain_memory = self._descriptors = 0
        self._grown = self._plain_grown = 0

    def look(self) -> None:
        node = self._node
        assert node.is_alive()
        until(node.is_alone)
        memory = node.memory()
        plain_memory = 0 if self._plain is None else self._plain.memory()
        if not self._memory:
            self._memory, self._plain_memory = memory, plain_memory
            self._descriptors = node.descriptors()
            return
        until(lambda: node.descriptors() <= self._descriptors)
        self._grown, self._plain_grown = memory - self._memory, plain_memory - self._plain_memory
        assert self._grown - max(0, self._plain_grown) < KEPT_MEMORY

    def tell(self) -> None:
        """Print what a long run is for."""
        beside = f"; plain grpcio: {self._plain_grown:,}" if self._plain is not None else ""
        print(f"bytes by which the node grew: {self._grown:,}{beside}")


def in_batches(
    node: Victim, total: int, round_of: Callable[[], None], plain: PlainServer | None = None
) -> None:
    steady, said = Steady(node, plain), 0
    while said < total + BATCH:  # the first is what the node is compared with
        for _ in range(BATCH // AT_ONCE):
            round_of()
        said += BATCH
        steady.look()
    steady.tell()


def hear_noise(
    node: Victim, total: int, kinds: Sequence[Kind], purpose: str, **certificate: str
) -> None:
    """Let strangers make noise, in the long form to a plain server as well."""
    draw, again = seeded(purpose), seeded(purpose)
    with plain_server(**certificate) if LONG else contextlib.nullcontext() as plain:

        def say_all() -> None:
            say(node.address, kinds, draw)
            if plain is not None:
                say(plain.address, kinds, again)

        in_batches(node, total, say_all, plain)


# ---------------------------------------------------------------- the tests


def test_request_for_a_method_that_is_no_text_harms_nobody():
    """It ended grpcio's server, with all streams, from 1.84.0 on, at least to 1.85.3."""
    with victim() as node, Line(node.address).open() as line:
        for name in (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"/\x80", b""):
            number = line.stream()
            said = request(number, "/genrpc.v1.NodeService/Call", [b""])
            line.send(said.replace(b"/Call", name.ljust(5, b"/")))
            line.wait_for([number])
            assert not line.is_over
            assert node.is_alive()
        assert node.peer.statistics()["streams_opened"] == 1


def test_strangers_noise_in_the_clear_leaves_nothing_behind():
    with victim(**MANY, **LISTED) as node:
        hear_noise(node, CONVERSATIONS * 7 // 10, IN_THE_CLEAR, "noise in the clear")
        assert node.ask("report")["canary"] is None


def test_strangers_noise_to_a_node_with_tls_leaves_nothing_behind(tmp_path: Path):
    """Before the handshake: noise, no TLS at all, and the hellos of TLS with bytes changed."""
    server, _ = certificates(tmp_path)
    own = certificates_of(tmp_path, "peer@127.0.0.1")
    with victim(own, **MANY, **LISTED, **server) as node:
        hello = recorded_hello(node)
        kinds = (noise, mutated, lambda draw: altered(draw, hello), lambda draw: hello)
        hear_noise(node, CONVERSATIONS * 2 // 10, kinds, "noise to TLS", **server)


def test_authenticated_peers_nonsense_leaves_nothing_behind():
    """A peer with the cookie, and frames that are nearly good, within the whitelist."""
    draw = seeded("nonsense of a peer")
    with victim(**MANY, **LISTED) as node:
        in_batches(node, CONVERSATIONS // 10, lambda: speak_nonsense(node, draw))
        assert node.ask("report")["canary"] is None


def speak_nonsense(node: Victim, draw: Draw) -> None:
    """On one connection, as many streams that go through the handshake and then go wrong."""
    with Line(node.address).open() as line:
        streams = [line.stream() for _ in range(AT_ONCE)]
        hellos = {}
        for stream in streams:
            hellos[stream] = pb.Hello(
                revision_max=1,
                revision_min=1,
                node=f"peer-{stream}@127.0.0.1",
                target_node=NAME,
                nonce=draw.randbytes(32),
                want_pickle=True,
            )
            hello = pb.ConnectRequest(hello=hellos[stream]).SerializeToString()
            line.send(request(stream, CONNECT, [hello])[: -len(frame(DATA, 1, stream))])
        for stream in streams:
            challenge = pb.ConnectResponse.FromString(line.answer(stream)).challenge
            transcript = security.transcript(hellos[stream], challenge)
            mac = security.client_proof(security.Cookie(COOKIE).key, transcript)
            proof = pb.ConnectRequest(auth_proof=pb.AuthProof(mac=mac)).SerializeToString()
            said = [message(stream, proof)]
            for _ in range(draw.randint(1, 3)):
                said.append(message(stream, altered(draw, good_calls(draw))))
            line.send(b"".join(said) + frame(DATA, 1, stream))
        line.wait_for(streams)


def good_calls(draw: Draw) -> bytes:
    """A frame of calls, some of them in chunks."""
    count = draw.randint(0, 3)
    arguments = [b"\x80\x04]\x94(]\x94K\x04a}\x94e.", b"\x80\x05](]K\x04a}e.", b"[[4],{}]"]
    batch = pb.CallBatch(
        targets=[pb.Target(number=0, module="math", function="sqrt")],
        call_ids=range(1, count + 1),
        payloads=draw.choices(arguments, k=count),
        kinds=draw.choices(range(4), k=count),
        encodings=draw.choices(range(5), k=count),
        timeouts_us=draw.choices((0, 1, 10**7), k=count),
        cancels=draw.choices(range(4), k=draw.randint(0, 1)),
    )
    if draw.random() < 0.5:
        data = draw.choice(arguments)
        start = pb.TransferStart(part_sizes=[len(data)], kind=draw.randrange(4))
        chunk = pb.Chunk(call_id=9, start=start, data=data, last=True)
        batch.chunk.CopyFrom(chunk)
    return pb.ConnectRequest(calls=batch).SerializeToString()


# ---------------------------------------------------------------- TLS


def certificates(directory: Path) -> tuple[dict[str, str], Path]:
    security.make_authority(directory)
    return certificates_of(directory, NAME), directory


def certificates_of(directory: Path, node: str) -> dict[str, str]:
    made = security.make_certificate(directory, node, ca_directory=directory)
    return {
        "certfile": str(made.certificate),
        "keyfile": str(made.key),
        "cacertfile": str(directory / "ca.crt"),
    }


def recorded_hello(node: Victim) -> bytes:
    """The first bytes of a TLS client to this node."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
