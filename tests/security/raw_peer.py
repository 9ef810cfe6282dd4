"""A peer that knows the cookie and keeps to nothing else: its frames are made by hand."""

from __future__ import annotations

import os
import ssl
from typing import Any

from nodes import COOKIE
from raw_http2 import CONNECT, Line, headers, message
from victim import NAME

from genrpc import codec, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC


class RawPeer:
    """One authenticated stream; calls are answered in the order of their replies."""

    def __init__(
        self,
        address: tuple[str, int],
        name: str = "raw@127.0.0.1",
        target: str = NAME,
        context: ssl.SSLContext | None = None,
        settings: dict[str, int] | None = None,
        pickles: bool = True,
        **proof: int,
    ) -> None:
        self.line = Line(address, context).open(**(settings or {}))
        self.stream = self.line.stream()
        self._heard = 0
        self._calls = 0
        self.line.send(headers(self.stream, CONNECT))
        hello = pb.Hello(
            revision_max=1,
            revision_min=1,
            node=name,
            target_node=target,
            nonce=os.urandom(32),
            want_pickle=pickles,
        )
        self.send(pb.ConnectRequest(hello=hello))
        challenge = self.hear().challenge
        transcript = security.transcript(hello, challenge)
        mac = security.client_proof(security.Cookie(COOKIE).key, transcript)
        self.send(pb.ConnectRequest(auth_proof=pb.AuthProof(mac=mac, **proof)))
        self.welcome = self.hear().welcome
        assert self.welcome.mac

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.socket.close()

    def send(self, frame: pb.ConnectRequest) -> None:
        self.send_bytes(frame.SerializeToString())

    def send_bytes(self, frame: bytes) -> None:
        """Send a frame, as fast as HTTP/2 lets it through."""
        self.line.send_within_window(message(self.stream, frame))

    def is_over(self) -> bool:
        """Whether the node has ended the stream, or the connection; reads what has come."""
        while self.line.receive(0.001):
            pass
        return self.stream in self.line.ended or self.line.is_over

    def hear(self) -> pb.ConnectResponse:
        """Wait for the next frame."""
        self._heard += 1
        return pb.ConnectResponse.FromString(self.line.answer(self.stream, self._heard - 1))

    def send_calls(self, **fields: Any) -> None:
        """Send a frame of calls."""
        self.send(pb.ConnectRequest(calls=pb.CallBatch(**fields)))

    def call(self, module: str, function: str, payload: bytes, **fields: Any) -> object:
        """Call and wait: the failure, or the bytes of the result."""
        self._calls += 1
        target = pb.Target(number=0, module=module, function=function)
        self.send_calls(
            targets=[target], call_ids=[self._calls], payloads=[payload], call_targets=[0], **fields
        )
        return self.reply_to(self._calls)

    def reply_to(self, call_id: int) -> object:
        """Wait for the reply of a call; others are passed over."""
        while True:
            replies = self.hear().replies
            if call_id in replies.call_ids:
                place = list(replies.call_ids).index(call_id)
                is_error = replies.outcomes and replies.outcomes[place] == pb.OUTCOME_KIND_ERROR
                data = replies.payloads[place]
                return codec.decode_error(data, pickles=False) if is_error else data

    def refusal(self, module: str, function: str, payload: bytes) -> tuple[object, str]:
        """Call, and give the reason and the execution of the failure."""
        failure = self.call(module, function, payload)
        assert isinstance(failure, BadRPC), failure
        return failure.reason, failure.execution
