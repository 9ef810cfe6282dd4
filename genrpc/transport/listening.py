"""Accepting streams: the listener of a node, with the service that other languages see."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from .channel import CONNECT, Line, server_options
from .stream import ServerStream

Accept = Callable[[ServerStream, str], None]


class CannotListenError(OSError):
    """The address cannot be listened on; the text says which and why."""


class Listener(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """A gRPC server; every Connect stream goes to `accept(stream, address)`."""

    def __init__(
        self,
        line: Line,
        accept: Accept,
        loop: asyncio.AbstractEventLoop,
        credentials: grpc.ServerCredentials | None = None,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        self.port = 0
        self._accept = accept
        self._loop = loop
        self._credentials = credentials
        self._refuses = False
        self._server = grpc.aio.server(options=server_options(line))
        self._server.add_generic_rpc_handlers((self, *handlers))
        self._connect = grpc.stream_stream_rpc_method_handler(self._serve)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._connect if details.method == CONNECT else None

    async def start(self, host: str, port: int) -> None:
        """Listen; `port` 0 takes a free one. Raises CannotListenError."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _check_free(host, port, address)
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise CannotListenError(
                f"cannot listen on {address}: the port is taken by another"
                " program, or the address is not one of this machine"
            )
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """Accept nothing any more; streams that are left after `grace` seconds are cut."""
        await self._server.stop(grace)

    async def _serve(self, _: object, context: Any) -> None:  # noqa: ANN401
        stream = ServerStream(context, self._loop)
        self._accept(stream, context.peer())
        await stream.wait()


_REFUSALS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


def _check_free(host: str, port: int, address: str) -> None:
    """Raise CannotListenError, with the system's reason, for a port that cannot be had.

    gRPC would find out too, but it tells nobody why, and writes a line to stderr that looks like
    a fault even where the node goes on to take another port.
    """
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As gRPC's own sockets: a connection of a former node may still linger on the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno in _REFUSALS:
                reason = os.strerror(exc.errno)
                raise CannotListenError(f"cannot listen on {address}: {reason}") from None
            # A name that only gRPC can resolve, say.
