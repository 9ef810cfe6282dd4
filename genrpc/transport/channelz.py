"""Channelz, gRPC's own account of its connections (`grpc.channelz.v1`): an extra, off by default.

It tells of all channels, servers and sockets of the process that were made with it on, with their
addresses and counts; to bearers of a token only. For the loop thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from genrpc.errors import ConfigurationError

from .bearers import Gate


def check_installed() -> None:
    """Raise ConfigurationError where the package that does it is missing."""
    if importlib.util.find_spec("grpc_channelz") is None:
        raise ConfigurationError(
            "channelz is on, but the package grpcio-channelz is not installed here: install"
            " genrpc[channelz], or leave the setting off."
        )


class Channelz(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Tells bearers of a token how the connections of this process do."""

    def __init__(self, gate: Gate) -> None:
        from grpc_channelz.v1 import channelz, channelz_pb2

        self._gate = gate
        self.descriptor = channelz_pb2.DESCRIPTOR
        service = self.descriptor.services_by_name["Channelz"]
        self.name: str = service.full_name
        servicer = channelz.aio.ChannelzServicer()
        self._handlers = {
            f"/{self.name}/{method.name}": grpc.unary_unary_rpc_method_handler(
                self._behind_the_gate(getattr(servicer, method.name)),
                request_deserializer=getattr(channelz_pb2, method.input_type.name).FromString,
                response_serializer=getattr(
                    channelz_pb2, method.output_type.name
                ).SerializeToString,
            )
            for method in service.methods
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._handlers.get(details.method)

    def _behind_the_gate(self, method: Callable[[Any, Any], Awaitable[Any]]) -> Any:  # noqa: ANN401
        async def answer(request: Any, context: Any) -> Any:  # noqa: ANN401
            await self._gate.admit(context)
            found = await method(request, context)
            if found is None:  # it has set a status, with a text that is gRPC's own affair
                await context.abort(
                    grpc.StatusCode.NOT_FOUND, "gRPC has no channel, server or socket of this id."
                )
            return found

        return answer
