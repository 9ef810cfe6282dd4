"""Opening a stream: from a host and a port to a `ClientStream`, one connection each.

Resolving a name may block for long, in the system's resolver, so it has a thread of its own;
a literal address, the usual case, needs none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import grpc

from genrpc.errors import BadTCP

from .channel import CONNECT, Line, client_options
from .stream import ClientStream
from .tls import ClientTls

T = TypeVar("T")

MAX_RESOLVING = 64
"""Names looked up at once; further ones wait for their turn."""


class Resolver:
    """Runs beside the loop what may block: name look-ups, users' discovery, TLS checks.

    A bounded few run at once.

    Threads are daemons: one that hangs in the resolver must not keep the program from ending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._free = asyncio.Semaphore(MAX_RESOLVING)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread and wait for its result; on the loop thread."""
        await self._free.acquire()
        result: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                value = function()
            except BaseException as exc:  # the waiting task raises it
                self._loop.call_soon_threadsafe(self._settle, result, None, exc)
            else:
                self._loop.call_soon_threadsafe(self._settle, result, value, None)

        try:
            threading.Thread(target=work, name="genrpc-resolve", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._free.release()
            raise
        return await result

    def _settle(
        self, future: asyncio.Future[T], value: T | None, error: BaseException | None
    ) -> None:
        # Not when the waiting task ends: one that gave up leaves its thread behind.
        self._free.release()
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]  # T may itself be None
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # a task cannot raise it without harm to the loop
            future.set_exception(RuntimeError(f"a look-up raised {error!r}"))

    async def addresses(self, host: str) -> list[str]:
        """The IP addresses of a host; raises OSError (gaierror) if it has none."""
        literal = _literal(host)
        if literal is not None:
            return [literal]
        found = await self.run(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def unknown_host(host: str) -> BadTCP:
    """The failure for a host without an address."""
    return BadTCP(
        "nxdomain",
        "not_started",
        f"The host {host!r} is unknown: correct the name"
        " after the @, or set where the node is with remote_tcp_server_ports.",
    )


def open_channel(target: str, line: Line, tls: ClientTls | None) -> grpc.aio.Channel:
    """Make a connection of its own; it is opened by its first call."""
    options = client_options(line)
    if tls is None:
        return grpc.aio.insecure_channel(target, options)
    # The server's own certificate is the only one that is trusted, by whatever name.
    credentials = grpc.ssl_channel_credentials(tls.server, tls.key, tls.certificate)
    options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target, credentials, options)


def open_stream(
    addresses: list[str],
    port: int,
    line: Line,
    tls: ClientTls | None,
    loop: asyncio.AbstractEventLoop,
    spawn: Callable[..., object],
) -> ClientStream:
    """Begin a stream on a connection of its own; a failure to connect ends it.

    With TLS, the address is the one where the server was checked.
    """
    if tls is not None:
        addresses = [tls.address]
    # gRPC takes addresses of one family only. Nodes listen on IPv4 unless told otherwise, also
    # where a name, such as localhost, has an IPv6 address that comes first.
    ipv4 = [address for address in addresses if ":" not in address]
    family = "ipv4" if ipv4 else "ipv6"
    ends = ",".join(f"{a}:{port}" for a in ipv4) or ",".join(f"[{a}]:{port}" for a in addresses)
    channel = open_channel(f"{family}:{ends}", line, tls)
    return ClientStream(channel.stream_stream(CONNECT), loop, lambda: spawn(channel.close()))
