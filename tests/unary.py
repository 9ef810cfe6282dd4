"""A caller of the unary methods for tests, as a program in another language would be one."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from nodes import COOKIE

from genrpc import Node, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

SERVICE = "genrpc.v1.NodeService"


def token_for(node: Node, cookie: str = COOKIE, **claims: Any) -> str:
    claims.setdefault("now", time.time())
    return security.make_token(security.Cookie(cookie), **claims)


class Refused(Exception):
    """A status instead of a response."""

    def __init__(self, error: grpc.RpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code: str = error.code().name
        self.text: str = error.details()
        self.info: error_details_pb2.ErrorInfo | None = None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                status = status_pb2.Status.FromString(value)
                assert status.code == error.code().value[0]
                assert status.message == self.text
                self.info = error_details_pb2.ErrorInfo()
                assert status.details[0].Unpack(self.info)

    @property
    def reason(self) -> str:
        """The reason of an ErrorInfo that says that nothing was started."""
        assert self.info is not None
        assert self.info.domain == "genrpc"
        assert self.info.metadata["execution"] == "NOT_STARTED"
        return self.info.reason


class Caller:
    """One connection to a node, with one token."""

    def __init__(self, node: Node, token: str | None = None, **claims: Any) -> None:
        self.token = token_for(node, **claims) if token is None else token
        self.metadata = (("authorization", f"Bearer {self.token}"),)
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{node.port}", options)

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()

    def begin(self, method: str, request: Any, timeout: float | None = 20.0) -> Any:
        """Send a request, a message or bytes; gives grpc's future of the response's bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        path = method if "/" in method else f"/{SERVICE}/{method}"
        return self.channel.unary_unary(path).future(data, timeout=timeout, metadata=self.metadata)

    def end(self, begun: Any, response: Any) -> Any:
        try:
            return response.FromString(begun.result())
        except grpc.RpcError as error:
            raise Refused(error) from None

    def ask(self, method: str, request: Any, timeout: float | None = 20.0) -> Any:
        """Send a request and give the response; raises Refused."""
        response = getattr(pb, f"{method}Response")
        return self.end(self.begin(method, request, timeout), response)

    def call(
        self,
        module: str,
        function: str,
        args: list[Any] | None = None,
        *,
        timeout: float | None = 20.0,
        **parts: Any,
    ) -> pb.CallResponse:
        """NodeService.Call; parts of the Mfa and of the request by name."""
        return self.ask("Call", request_for(module, function, args, **parts), timeout)

    def value(self, *target: Any, **parts: Any) -> Any:
        """The result of a call, of a google.protobuf.Value."""
        response = self.call(*target, **parts)
        assert response.WhichOneof("outcome") == "result", response
        assert response.result.WhichOneof("encoding") == "value"
        return plain(response.result.value)

    def error(self, *target: Any, **parts: Any) -> pb.RpcError:
        """The error of a call that was answered with OK."""
        response = self.call(*target, **parts)
        assert response.WhichOneof("outcome") == "error", response
        assert response.error.message
        return response.error


def request_for(
    module: str, function: str, args: list[Any] | None = None, **parts: Any
) -> pb.CallRequest:
    request = pb.CallRequest()
    for name in ("reply_encoding", "idempotency_key"):
        if name in parts:
            setattr(request, name, parts.pop(name))
    request.mfa.CopyFrom(mfa_for(module, function, args, **parts))
    return request


def mfa_for(
    module: str, function: str, args: list[Any] | None = None, kwargs: Any = None, **parts: Any
) -> pb.Mfa:
    mfa = pb.Mfa(module=module, function=function, **parts)
    if args is not None:
        mfa.args.SetInParent()
        mfa.args.extend(args)
    if kwargs is not None:
        mfa.kwargs.SetInParent()
        mfa.kwargs.update(kwargs)
    return mfa


def plain(value: Any) -> Any:
    """A google.protobuf.Value in Python's terms."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    if kind == "struct_value":
        return {key: plain(item) for key, item in value.struct_value.fields.items()}
    return None if kind == "null_value" else getattr(value, kind)
