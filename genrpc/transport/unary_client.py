"""Asking another node by its unary methods, on a connection of its own. For the loop thread."""

from __future__ import annotations

import asyncio

import grpc

from genrpc.errors import BadRPC, BadTCP, error_of

from .bearers import is_loopback
from .channel import SERVICE, Line
from .dialling import open_channel
from .refusals import reason_in
from .status import failure_of
from .tls import ClientTls

_UNAUTHENTICATED = (
    "The node did not take the token that was made for it: it has another cookie, or another name"
    " than the one asked for, or its clock is wrong by more than a minute."
)


class UnaryClient:
    """A connection to one node, for requests with a token; to be closed."""

    def __init__(self, addresses: list[str], port: int, line: Line, tls: ClientTls | None) -> None:
        """Begin to connect; with TLS, to where the server was checked.

        Raises the CallError for "invalid_cookie" if the token would go over a network in the
        clear.
        """
        address = addresses[0] if tls is None else tls.address
        if tls is None and not is_loopback(address):
            raise error_of(
                BadRPC(
                    "invalid_cookie",
                    "not_started",
                    f"A token is not sent to {address} in the clear, where others may read it:"
                    " give both nodes certificates.",
                )
            )
        target = f"ipv6:[{address}]:{port}" if ":" in address else f"ipv4:{address}:{port}"
        self._channel = open_channel(target, line, tls)

    async def ask(
        self, method: str, request: bytes, token: str, connect_timeout: float | None
    ) -> bytes:
        """Send a request and return the response; raises a CallError.

        Waits for ever; cancelling it cancels the request.
        """
        metadata = (("authorization", f"Bearer {token}"),)
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")(request, metadata=metadata)
        waiting = asyncio.ensure_future(_response(call))
        try:
            await asyncio.wait([waiting], timeout=connect_timeout)
            connected = self._channel.get_state() is grpc.ChannelConnectivity.READY
            if not waiting.done() and not connected:
                raise error_of(BadTCP("connect_timeout", "not_started"))
            return await waiting
        except grpc.RpcError as error:
            raise error_of(_failure(error)) from None
        finally:
            waiting.cancel()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


async def _response(call: grpc.aio.UnaryUnaryCall) -> bytes:
    response: bytes = await call
    return response


def _failure(error: grpc.RpcError) -> BadRPC | BadTCP:
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return BadRPC("invalid_cookie", "not_started", _UNAUTHENTICATED)
    reason = reason_in(error)
    if reason is not None:
        return BadRPC(reason, "not_started", error.details() or "")
    return failure_of(error)
