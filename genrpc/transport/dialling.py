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
        async with self._free:
            result: asyncio.Future[T] = self._loop.create_future()

            def work() -> None:
                try:
                    value = function()
                except Exception as exc:  # the waiting task raises it
                    self._loop.call_soon_threadsafe(_settle, result, None, exc)
                else:
                    self._loop.call_soon_threadsafe(_settle, result, value, None)

            threading.Thread(target=work, name="genrpc-resolve", daemon=True).start()
            return await result

    async def addresses(self, host: str) -> list[str]:
        """The IP addresses of a host; raises OSError (gaierror) if it has none."""
        literal = _literal(host)
        if literal is not None:
            return [literal]
        found = await self.run(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _settle(future: asyncio.Future[T], value: T | None, error: Exception | None) -> None:
    if not future.done():
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # T may itself be None


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
    family = "ipv6" if ":" in addresses[0] else "ipv4"
    usable = [address for address in addresses if (":" in address) == (family == "ipv6")]
    ends = ",".join(f"[{a}]:{port}" if family == "ipv6" else f"{a}:{port}" for a in usable)
    options = client_options(line)
    if tls is None:
        channel = grpc.aio.insecure_channel(f"{family}:{ends}", options)
    else:
        # The server's own certificate is the only one that is trusted, by whatever name.
        credentials = grpc.ssl_channel_credentials(tls.server, tls.key, tls.certificate)
        options.append(("grpc.ssl_target_name_override", tls.server_name))
        channel = grpc.aio.secure_channel(f"{family}:{ends}", credentials, options)
    call = channel.stream_stream(CONNECT)()
    return ClientStream(call, loop, lambda: spawn(channel.close()))
