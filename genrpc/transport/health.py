"""Health checks as all of gRPC knows them (`grpc.health.v1`): open to anybody, without a token.

A node serves from its start until it begins to stop; then whoever watches is told, and the watch
ends. `grpc_health`'s own servicer would keep a lock for each name that a stranger makes up, and
its watches would hold up a stop. For the loop thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

MAX_WATCHERS = 1000

_Response = health_pb2.HealthCheckResponse


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Tells whether the named services, and the server as a whole (""), serve."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._stopping = asyncio.Event()
        self._watchers = 0
        types = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": _Response.SerializeToString,
        }
        self._handlers = {
            f"/{SERVICE}/Check": grpc.unary_unary_rpc_method_handler(self._check, **types),
            f"/{SERVICE}/Watch": grpc.unary_stream_rpc_method_handler(self._watch, **types),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._handlers.get(details.method)

    def stop_serving(self) -> None:
        """From now on nothing serves, for good."""
        self._stopping.set()

    def _status(self, service: str) -> Any:  # noqa: ANN401  # a protobuf enum
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.NOT_SERVING if self._stopping.is_set() else _Response.SERVING

    async def _check(self, request: Any, context: Any) -> Any:  # noqa: ANN401
        status = self._status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return _Response(status=status)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        if self._watchers >= MAX_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHERS} watch this server already: use Check.",
            )
        self._watchers += 1
        try:
            first = self._status(request.service)
            yield _Response(status=first)
            await self._stopping.wait()
            last = self._status(request.service)
            if last != first:
                yield _Response(status=last)
        finally:
            self._watchers -= 1
