"""What a unary method answers when nothing was run: a gRPC status that programs can read.

The status carries `google.rpc.ErrorInfo` { domain "genrpc", reason, metadata.execution
"NOT_STARTED" } in `grpc-status-details-bin`, as all of gRPC's languages know it. Texts of
unexpected exceptions stay in this node's log. Only the loop thread awaits here.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "genrpc"
DETAILS = "grpc-status-details-bin"

MAX_TEXT = 1000
"""Characters of a message: a header list has 8 KiB in all, and each may become nine of them."""

_CODES = {
    "invalid_cookie": grpc.StatusCode.UNAUTHENTICATED,
    "unauthorized": grpc.StatusCode.PERMISSION_DENIED,
    "overload": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "draining": grpc.StatusCode.UNAVAILABLE,
    "timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "bad_arguments": grpc.StatusCode.INVALID_ARGUMENT,
    "incompatible": grpc.StatusCode.FAILED_PRECONDITION,
    "killed": grpc.StatusCode.ABORTED,
}


class RefusedError(Exception):
    """What was asked for was not done, not even begun; `reason` is a word of `genrpc.errors`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


async def refuse(context: Any, refused: RefusedError) -> NoReturn:  # noqa: ANN401  # grpc has no types
    """End a method with the status for `refused`; raises what gRPC wants raised."""
    code = _CODES.get(refused.reason, grpc.StatusCode.INTERNAL)
    text = " ".join(refused.message[:MAX_TEXT].split())
    info = error_details_pb2.ErrorInfo(
        domain=DOMAIN, reason=refused.reason.upper(), metadata={"execution": "NOT_STARTED"}
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=text, details=[detail])
    await context.abort(code, text, ((DETAILS, status.SerializeToString()),))
    raise AssertionError("gRPC's abort returned")


def reason_in(error: grpc.RpcError) -> str | None:
    """The word that a genrpc node put into a status, in lower case; None if there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS:
            try:
                status = status_pb2.Status.FromString(value)
                info = error_details_pb2.ErrorInfo()
                for detail in status.details:
                    if detail.Unpack(info) and info.domain == DOMAIN:
                        reason: str = info.reason.lower()
                        return reason
            except (DecodeError, TypeError):  # somebody else's
                return None
    return None
