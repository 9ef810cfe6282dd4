"""Asking other nodes who they are and what may be run there, by their unary methods.

Each inquiry makes a token of the cookie, for the one node and a minute, and a connection of its
own. All of it is for the loop thread.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from genrpc import discovery, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, error_of
from genrpc.names import Destination
from genrpc.peers import MAX_CHECK_SECONDS, Surroundings
from genrpc.transport.dialling import unknown_host
from genrpc.transport.tls import ClientTls, check_server
from genrpc.transport.unary_client import UnaryClient

T = TypeVar("T")

TOKEN_SECONDS = 60.0


class Inquiries:
    """What one node asks others."""

    def __init__(self, around: Surroundings, cookie: security.Cookie) -> None:
        self._around = around
        self._cookie = cookie

    async def status(self, destination: Destination, seconds: float | None) -> pb.GetStatusResponse:
        """Ask a node for its status; raises a CallError."""

        async def ask() -> pb.GetStatusResponse:
            async with self._client(destination) as client:
                # Whoever listens there gets this token: it is good for next to nothing.
                token = self._token(destination, ["genrpc:ping"])
                data = await client.ask("GetStatus", b"", token, self._connect_timeout)
                return pb.GetStatusResponse.FromString(data)

        return await _within(seconds, ask())

    async def functions(
        self, destination: Destination, prefix: str, seconds: float | None
    ) -> list[pb.FunctionInfo]:
        """Ask a node what may be run there; raises a CallError."""

        async def ask() -> list[pb.FunctionInfo]:
            async with self._client(destination) as client:
                token = self._token(destination, [])
                found: list[pb.FunctionInfo] = []
                request = pb.ListFunctionsRequest(prefix=prefix)
                while True:
                    data = await client.ask(
                        "ListFunctions", request.SerializeToString(), token, self._connect_timeout
                    )
                    page = pb.ListFunctionsResponse.FromString(data)
                    found += page.functions
                    if not page.next_page_token:
                        return found
                    request.page_token = page.next_page_token

        return await _within(seconds, ask())

    @property
    def _connect_timeout(self) -> float | None:
        return self._around.settings.connect_timeout

    def _token(self, destination: Destination, allow: list[str]) -> str:
        return security.make_token(
            self._cookie,
            ttl=TOKEN_SECONDS,
            allow=allow,
            audience=destination.node,
            issuer=self._around.node,
            now=time.time(),
        )

    @asynccontextmanager
    async def _client(self, destination: Destination) -> AsyncIterator[UnaryClient]:
        around = self._around
        find = functools.partial(discovery.find, destination, around.settings)
        quick = discovery.is_quick(destination, around.settings)
        host, port = find() if quick else await around.resolver.run(find)
        try:
            addresses = await around.resolver.addresses(host)
        except OSError:
            raise error_of(unknown_host(host)) from None
        tls = await self._check_server(destination.node, addresses, port)
        client = UnaryClient(addresses, port, around.line, tls)
        try:
            yield client
        finally:
            await client.close()

    async def _check_server(self, node: str, addresses: list[str], port: int) -> ClientTls | None:
        around = self._around
        if around.certificates is None:
            return None
        seconds = self._connect_timeout
        deadline = around.thread.loop.time() + (MAX_CHECK_SECONDS if seconds is None else seconds)
        return await around.resolver.run(
            functools.partial(check_server, around.certificates, node, addresses, port, deadline)
        )


async def _within(seconds: float | None, asking: Coroutine[Any, Any, T]) -> T:
    try:
        return await asyncio.wait_for(asking, seconds)
    except asyncio.TimeoutError:
        raise error_of(BadRPC("timeout", "unknown")) from None
