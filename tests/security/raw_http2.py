"""HTTP/2 by hand, for those who do not keep to it: frames as bytes, many streams on a socket.

Header lists are written without compression (RFC 7541, 6.2.2) and never read: what a node says
to a stranger is told by the messages in its data frames, and by the end of the stream.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT = "/genrpc.v1.NodeService/Connect"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4

Socket: TypeAlias = "socket.socket | ssl.SSLSocket"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Make a frame."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """Make a frame of settings, by their numbers: `s4=0` is an initial window of nothing."""
    pairs = (struct.pack("!HI", int(name[1:]), value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def opening(**values: int) -> bytes:
    """What a client says first: all windows are as large as can be, unless told otherwise."""
    return (
        PREFACE
        + settings(**{"s4": 2**31 - 1, **values})
        + frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 2**30))
    )


def _text(value: bytes) -> bytes:
    size, out = len(value), bytearray()
    if size < 127:
        return bytes((size,)) + value
    out.append(127)
    size -= 127
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    out.append(size)
    return bytes(out) + value


def headers(
    stream: int, path: str, metadata: Sequence[tuple[str, bytes]] = (), end: bool = False
) -> bytes:
    """Make the frame that opens a stream."""
    fields = [
        (":method", b"POST"),
        (":scheme", b"http"),
        (":path", path.encode()),
        (":authority", b"victim"),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
        *metadata,
    ]
    block = b"".join(b"\0" + _text(name.encode()) + _text(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def message(stream: int, data: bytes, end: bool = False) -> bytes:
    """Make the frames of a gRPC message."""
    body = struct.pack("!BI", 0, len(data)) + data
    pieces = [body[begin : begin + 16_384] for begin in range(0, len(body), 16_384)]
    return b"".join(
        frame(DATA, END_STREAM if end and number == len(pieces) else 0, stream, piece)
        for number, piece in enumerate(pieces, 1)
    )


def request(
    stream: int, path: str, messages: Iterable[bytes], metadata: Sequence[tuple[str, bytes]] = ()
) -> bytes:
    """Make all frames of a stream that says these messages and ends its side."""
    said = [message(stream, each) for each in messages]
    return b"".join((headers(stream, path, metadata), *said, frame(DATA, END_STREAM, stream)))


class Line:
    """A connection to a node; `answers` has the gRPC messages of each stream that came so far."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self.socket: Socket = socket.create_connection(address, 20)
        if context is not None:
            self.socket = context.wrap_socket(self.socket)
        self.answers: dict[int, list[bytes]] = {}
        self.ended: set[int] = set()
        self.is_over = False
        self._next = 1
        self._input = b""
        self._partial: dict[int, bytes] = {}

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def open(self, **values: int) -> Line:
        """Say what a client says first."""
        self.send(opening(**values))
        return self

    def stream(self) -> int:
        """Take the number of a new stream."""
        self._next += 2
        return self._next - 2

    def send(self, data: bytes) -> None:
        """Send; that the other side has hung up is no failure, it may."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_over = True

    def send_within_window(self, data: bytes) -> None:
        """Send, in pieces small enough for the node to grant more in between."""
        for begin in range(0, len(data), 32_768):
            self.send(data[begin : begin + 32_768])
            while self.receive(0.001):
                pass

    def receive(self, seconds: float) -> bool:
        """Read once; False if nothing came within that time, or nothing will."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(65_536)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.is_over = True
            return False
        self._take(data)
        return True

    def wait_for(self, streams: Iterable[int], seconds: float = 20.0) -> None:
        """Read until these streams have ended, or the connection has."""
        wanted, deadline = set(streams), time.monotonic() + seconds
        while wanted - self.ended and not self.is_over:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(wanted - self.ended)} streams had no end in {seconds} s"
            self.receive(left)

    def answer(self, stream: int, number: int = 0, seconds: float = 20.0) -> bytes:
        """Wait for a message of a stream."""
        deadline = time.monotonic() + seconds
        while len(self.answers.get(stream, ())) <= number:
            left = deadline - time.monotonic()
            assert left > 0, "no answer came"
            assert not self.is_over, "no answer will come"
            assert stream not in self.ended, "the stream has ended without this answer"
            self.receive(left)
        return self.answers[stream][number]

    def _take(self, data: bytes) -> None:
        self._input += data
        while len(self._input) >= 9:
            size = int.from_bytes(self._input[:3], "big")
            if len(self._input) < 9 + size:
                return
            kind, flags, stream = struct.unpack("!BBI", self._input[3:9])
            payload, self._input = self._input[9 : 9 + size], self._input[9 + size :]
            self._heard(kind, flags, stream & 0x7FFF_FFFF, payload)

    def _heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._data(stream, payload)
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended.add(stream)

    def _data(self, stream: int, payload: bytes) -> None:
        held = self._partial.get(stream, b"") + payload
        while len(held) >= 5:
            size = int.from_bytes(held[1:5], "big")
            if len(held) < 5 + size:
                break
            self.answers.setdefault(stream, []).append(held[5 : 5 + size])
            held = held[5 + size :]
        self._partial[stream] = held
