"""Servers on loopback that are no genrpc nodes, or bad ones: what a caller may come upon."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

CONNECT = "/genrpc.v1.NodeService/Connect"


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and that nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """Accepts, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def _answering(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the server was closed
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@contextlib.contextmanager
def garbage() -> Iterator[int]:
    """Answers whatever comes with bytes that are no HTTP/2."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"\x00\xff garbage \r\n" * 100)
        connection.settimeout(1)
        while connection.recv(65536):
            pass

    with _answering(answer) as port:
        yield port


@contextlib.contextmanager
def http_1() -> Iterator[int]:
    """A web server."""
    handler = http.server.BaseHTTPRequestHandler
    handler.log_message = lambda *args: None  # type: ignore[method-assign]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def _grpc(connect: Callable[..., object] | None) -> Iterator[int]:
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        if connect is not None:
            handlers = {"Connect": grpc.stream_stream_rpc_method_handler(connect)}
            service = grpc.method_handlers_generic_handler("genrpc.v1.NodeService", handlers)
            server.add_generic_rpc_handlers([service])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(0).wait()


@contextlib.contextmanager
def other_grpc() -> Iterator[int]:
    """A gRPC server of other services."""
    with _grpc(None) as port:
        yield port


@contextlib.contextmanager
def grpc_that_closes() -> Iterator[int]:
    """Accepts the stream and ends it without a word."""
    with _grpc(lambda frames, context: iter(())) as port:
        yield port


@contextlib.contextmanager
def grpc_that_spoils() -> Iterator[int]:
    """Accepts the stream and answers with bytes that are no frame."""
    with _grpc(lambda frames, context: iter([b"\xff\xff\xff\xff"])) as port:
        yield port


@contextlib.contextmanager
def grpc_that_fails() -> Iterator[int]:
    """Accepts the stream and fails."""

    def fail(frames: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.INTERNAL, "it went wrong")
        yield b""

    with _grpc(fail) as port:
        yield port
