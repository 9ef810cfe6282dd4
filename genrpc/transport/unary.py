"""The unary methods of `genrpc.v1.NodeService`, as gRPC wants them: for other languages.

Requests and responses pass as bytes; what they mean is the `Desk`'s business. Here are the token,
gRPC's deadline, and what becomes of a refusal or of an exception that nobody expected. For the
loop thread.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from .bearers import Bearer, Gate
from .channel import SERVICE
from .refusals import RefusedError, refuse

log = logging.getLogger("genrpc")

Method = Callable[[Bearer, bytes, "float | None"], Awaitable[bytes]]


class Desk(Protocol):
    """Who answers.

    Each method takes the caller, the request and the seconds that are left (None: no
    limit), returns the response and raises RefusedError. A caller that gives up cancels it.
    """

    async def call(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Answer Call."""

    async def cast(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Answer Cast."""

    async def list_functions(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Answer ListFunctions."""

    async def get_status(self, bearer: Bearer, request: bytes, seconds: float | None) -> bytes:
        """Answer GetStatus."""


class UnaryService(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """What a listener has besides Connect."""

    def __init__(self, desk: Desk, gate: Gate) -> None:
        self._gate = gate
        self._handlers = {
            f"/{SERVICE}/Call": self._handler(desk.call),
            f"/{SERVICE}/Cast": self._handler(desk.cast),
            f"/{SERVICE}/ListFunctions": self._handler(desk.list_functions),
            f"/{SERVICE}/GetStatus": self._handler(desk.get_status),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._handlers.get(details.method)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        async def answer(request: bytes, context: Any) -> bytes:  # noqa: ANN401
            bearer = await self._gate.admit(context)
            try:
                return await method(bearer, request, context.time_remaining())
            except RefusedError as error:
                refused = error
            except Exception:  # its text is for the log, not for the caller
                log.exception("A unary method failed")
                await context.abort(
                    grpc.StatusCode.INTERNAL, "This node failed to answer; its log says why."
                )
            await refuse(context, refused)

        # Without serializers gRPC passes bytes as they are.
        return grpc.unary_unary_rpc_method_handler(answer)
