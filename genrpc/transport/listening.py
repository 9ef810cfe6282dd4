"""Accepting streams: the listener of a node, with the service that other languages see."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from .channel import CONNECT, Line, server_options
from .stream import ServerStream

log = logging.getLogger("genrpc")

Accept = Callable[[ServerStream, str], None]

AGAIN_SECONDS = 1.0
"""The pause before a listener that died is begun anew a second time."""


class CannotListenError(OSError):
    """The address cannot be listened on; the text says which and why."""


class Listener(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """A gRPC server; every Connect stream goes to `accept(stream, address)`.

    One that dies is begun anew on its port: grpcio ends a server for good when its own loop
    raises, and has had faults by which a stranger could bring that about.
    """

    def __init__(
        self,
        line: Line,
        accept: Accept,
        loop: asyncio.AbstractEventLoop,
        credentials: grpc.ServerCredentials | None = None,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        self.port = 0
        self._address = ""
        self._line = line
        self._accept = accept
        self._loop = loop
        self._credentials = credentials
        self._handlers = (self, *handlers)
        self._server = self._new_server()
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False
        self._connect = grpc.stream_stream_rpc_method_handler(self._serve)

    def _new_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=server_options(self._line))
        server.add_generic_rpc_handlers(self._handlers)
        return server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._connect if details.method == CONNECT else None

    async def start(self, host: str, port: int) -> None:
        """Listen; `port` 0 takes a free one. Raises CannotListenError."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _check_free(host, port, address)
        self.port = self._bind(address)
        self._address = f"{address.rpartition(':')[0]}:{self.port}"
        await self._server.start()
        self._watch = self._loop.create_task(self._revive())

    def _bind(self, address: str) -> int:
        """Give the port that the server has now; raises CannotListenError."""
        port = 0
        with contextlib.suppress(RuntimeError):
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        if not port:
            raise CannotListenError(
                f"cannot listen on {address}: the port is taken by another"
                " program, or the address is not one of this machine"
            )
        return port

    async def _revive(self) -> None:
        """Wait for a server that ends unasked, and begin another in its place."""
        while True:
            cause = "it was stopped"
            try:
                # Never to be cancelled: that would cancel what `stop` waits for, too.
                await self._server.wait_for_termination()
            except Exception as exc:  # whatever ended it
                cause = repr(exc)
            if self._stopping:
                return
            log.error("The listener on %s has died (%s) and is begun anew", self._address, cause)
            await self._begin_anew()

    async def _begin_anew(self) -> None:
        while not self._stopping:
            self._server = self._new_server()
            try:
                self._bind(self._address)
            except CannotListenError as exc:
                log.error("%s", exc)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                await self._server.start()
                return

    async def stop(self, grace: float | None) -> None:
        """Accept nothing any more; streams that are left after `grace` seconds are cut."""
        self._stopping = True
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
