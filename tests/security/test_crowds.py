"""Many strangers at once, or one with very much to say: honest peers do not notice."""

from __future__ import annotations

import functools
import gzip
import resource
import socket
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from nodes import COOKIE
from raw_http2 import CONNECT, DATA, END_STREAM, Line, frame, headers, opening
from scale import LONG, count, patient
from victim import Victim, victim
from waiting import SECONDS, until

from genrpc import rpc, security

pytestmark = [
    pytest.mark.slow,
    patient,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

MIB = 2**20
BOMB = count(200, 2000) * MIB
KEPT_MEMORY = 20 * MIB
IDLE = count(2_000, 20_000)
HALF_OPEN = count(1_000, 10_000)


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """Let this process, and those that it starts, have as many as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def as_many_as_there_can_be(wanted: int) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - 500)
    if found < wanted:
        print(f"only {found} connections instead of {wanted}: the limit of files is {hard}")
    return found


# ---------------------------------------------------------------- bombs


@functools.cache
def gzipped(size: int) -> bytes:
    """That many zeros, compressed as they come."""
    made = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [made.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join((*pieces, made.flush()))


@pytest.fixture(scope="module")
def bombed() -> Iterator[Victim]:
    with victim() as node:
        yield node


@pytest.mark.parametrize("method", [CONNECT, "/genrpc.v1.NodeService/Call", "/nothing"])
@pytest.mark.parametrize("has_token", [False, True])
def test_compressed_bomb_does_not_go_off(bombed, method, has_token):
    """A frame that is small, and would be hundreds of megabytes."""
    bomb = gzipped(BOMB)
    metadata = [("grpc-encoding", b"gzip")]
    if has_token:
        token = security.make_token(security.Cookie(COOKIE), now=time.time())
        metadata.append(("authorization", f"Bearer {token}".encode()))
    body = struct.pack("!BI", 1, len(bomb)) + bomb
    explode(bombed, method, metadata, small_body())  # with all that is done for the first time
    bombed.forget_peak()
    before = bombed.memory()
    explode(bombed, method, metadata, body)
    assert bombed.peak() - before < KEPT_MEMORY
    assert bombed.is_alive()


def small_body() -> bytes:
    data = gzip.compress(bytes(100))
    return struct.pack("!BI", 1, len(data)) + data


def explode(node: Victim, method: str, metadata: list[tuple[str, bytes]], body: bytes) -> None:
    with Line(node.address).open() as line:
        number = line.stream()
        line.send(headers(number, method, metadata))
        for begin in range(0, len(body), 16_384):
            line.send_within_window(frame(DATA, 0, number, body[begin : begin + 16_384]))
        line.send(frame(DATA, END_STREAM, number))
        line.wait_for([number])


# ---------------------------------------------------------------- crowds


def connect(node: Victim, number: int, said: Callable[[int], bytes]) -> list[socket.socket]:
    """Open many connections; say something on each."""
    found = []
    for place in range(number):
        found.append(socket.create_connection(node.address, SECONDS))
        found[-1].sendall(said(place))
    return found


def close(lines: list[socket.socket]) -> None:
    for line in lines:
        line.close()


def test_idle_connections_cost_others_nothing():
    with victim() as node:
        before, memory = node.descriptors(), node.memory()
        lines = connect(node, as_many_as_there_can_be(IDLE), lambda place: opening())
        assert node.is_alive()
        assert node.memory() - memory < 50_000 * len(lines)
        close(lines)
        until(lambda: node.descriptors() <= before)
        assert node.peer.statistics()["streams_opened"] == 1


def test_strangers_cannot_take_the_descriptors_that_a_node_needs():
    with victim(files=600) as node:
        lines = connect(node, 1_000, lambda place: opening())
        until(lambda: node.descriptors() > 300)
        assert node.descriptors() < 400
        opened = rpc.call(node.dest, "os", "listdir", ["/proc/self/fd"], via=node.peer)
        assert len(opened) > 300
        assert rpc.call(node.dest, "subprocess", "getoutput", ["echo ok"], via=node.peer) == "ok"
        close(lines)
        until(lambda: node.descriptors() < 100)
        assert rpc.call((node.dest, "new"), "genrpc", "ping", via=node.peer) == "pong"


def half_open(place: int) -> bytes:
    """Nothing at all, no more than HTTP/2, or a stream without a hello."""
    return (b"", opening(), opening() + headers(1, CONNECT))[place % 3]


def test_half_open_handshakes_do_not_keep_an_authenticated_peer_from_its_answers():
    with victim() as node:
        before = node.descriptors()
        lines = connect(node, as_many_as_there_can_be(HALF_OPEN), half_open)
        keys = [node.peer.promise(node.dest, "math", "sqrt", [4.0]) for _ in range(500)]
        assert [key.result(SECONDS) for key in keys] == [2.0] * 500
        limit = "limit_max_pending_handshakes_per_address"
        until(lambda: node.ask("report")["statistics"].get(limit, 0) > 0)
        assert node.peer.statistics()["streams_opened"] == 1
        close(lines)
        until(node.is_alone)
        until(lambda: node.descriptors() <= before)


@pytest.mark.skipif(
    not LONG, reason="it compares times: only in the long form, SECURITY_TESTS=long"
)
def test_half_open_handshakes_at_most_double_the_latency_of_an_authenticated_peer():
    with victim() as node:
        p99_of(node, 2_000)
        calm, crowded = [], []
        for _ in range(7):  # alternating, so that what else the machine does is in both
            calm.append(p99_of(node, 2_000))
            before, refused = node.descriptors(), refused_by(node)
            lines = connect(node, 1_000, half_open)
            # Measured is what they cost who are there, not the moment when all of them come.
            until(arrived(node, before + 1_000, refused + 1_000 // 3 - 128))
            crowded.append(p99_of(node, 2_000))
            close(lines)
            until(node.is_alone)
        print(f"p99 of a call: {calm} calm, {crowded} among 1,000 half-open handshakes")
        assert statistics.median(crowded) <= 2 * statistics.median(calm)


def refused_by(node: Victim) -> int:
    counted = node.ask("report")["statistics"]
    return counted.get("limit_max_pending_handshakes_per_address", 0)


def arrived(node: Victim, descriptors: int, refused: int) -> Callable[[], bool]:
    return lambda: node.descriptors() >= descriptors and refused_by(node) >= refused


def p99_of(node: Victim, calls: int) -> float:
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        node.peer.call(node.dest, "genrpc", "ping", [], SECONDS)
        times.append(time.perf_counter() - begun)
    return statistics.quantiles(times, n=100)[98]
