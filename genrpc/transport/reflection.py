"""Server reflection, by which grpcurl learns the service: for bearers of a token only.

It shows what this server serves and nothing else: the process may have loaded files of other
services, which are nobody's business here. For the loop thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

from . import channel, health
from .bearers import Gate

SERVICES = (channel.SERVICE, health.SERVICE, reflection.SERVICE_NAME)

# The two versions of the protocol differ in their names only; clients ask by the newer one first.
_METHODS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


class Reflection(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Tells bearers of a token what the server serves."""

    def __init__(self, gate: Gate, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """`more` has the names of further services, with the descriptors of their files."""
        self._gate = gate
        self._servicer = reflection.aio.ReflectionServicer(
            (*SERVICES, *more), pool=_shown(more.values())
        )
        self._handler = grpc.stream_stream_rpc_method_handler(
            self._info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Tell gRPC what answers a method."""
        return self._handler if details.method in _METHODS else None

    async def _info(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        await self._gate.admit(context)
        async for response in self._servicer.ServerReflectionInfo(requests, context):
            yield response


def _shown(more: Iterable[Any]) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:  # noqa: ANN401  # a descriptor, which has no public type
        if file.name not in added:
            added.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb))

    # The last one stands in statuses, for tools that show what is in them.
    for module in (pb, health_pb2, reflection_pb2, error_details_pb2):
        add(module.DESCRIPTOR)
    for file in more:
        add(file)
    return pool
