"""What a failure of gRPC means for a call: the word, and a sentence.

gRPC tells most failures apart only in the text of UNAVAILABLE. Texts are no stable API:
they are tested against the oldest and the newest grpcio, and one that is not known is
"closed". What a call's `execution` is, the session knows better and decides itself.
"""

from __future__ import annotations

import grpc

from genrpc.errors import BadTCP

_TEXTS = (
    ("Connection refused", "econnrefused"),
    ("Domain name not found", "nxdomain"),
    ("DNS resolution failed", "nxdomain"),
    ("No route to host", "ehostunreach"),
    ("Host is unreachable", "ehostunreach"),
    ("Network is unreachable", "enetunreach"),
    ("Failed parsing HTTP/2", "corrupt_data"),
    ("http1.x server", "corrupt_data"),
    ("Tls handshake failed", "tls"),
    ("TLS handshake failed", "tls"),
    ("Ssl handshake failed", "tls"),
    ("SSL_ERROR", "tls"),
    ("CERTIFICATE_VERIFY_FAILED", "tls"),
    ("WRONG_VERSION_NUMBER", "tls"),
    ("Peer name", "tls"),
    ("verification check failed", "tls"),
    ("Verification Check failed", "tls"),
    ("Connection attempt timed out", "connect_timeout"),
)

WRITE_FAILED = "Internal error from Core"
"""What grpc.aio, with or without a full stop, makes the details of a stream that was
lost while a frame was being written, with the code INTERNAL; the real ones are lost with it."""

TLS_REFUSED = "tls: "
"""How the details begin when a node ends a stream because of its client's certificate."""

MAX_WORDS = 500
"""Characters of a peer's sentence that are kept."""

_NO_NODE = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,  # a gRPC server, but without our service
        grpc.StatusCode.INTERNAL,  # bytes that are no HTTP/2 or no gRPC
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # a frame over the limit that was announced
    }
)


def failure_of(error: grpc.RpcError) -> BadTCP:
    """The value that the calls of a stream get which ended with `error`."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        reason = next((reason for text, reason in _TEXTS if text in details), "closed")
        if reason == "corrupt_data":
            return BadTCP(
                reason, message=f"What answers at that address is no genrpc node: {details}."
            )
        return BadTCP(reason, message=_last_words(details) if reason == "tls" else "")
    if code is grpc.StatusCode.UNAUTHENTICATED and details.startswith(TLS_REFUSED):
        words = details[len(TLS_REFUSED) :][:MAX_WORDS]
        return BadTCP("tls", message=f"The peer refused this node's certificate: {words}.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return BadTCP(
            "corrupt_data",
            message="What answers at that address speaks gRPC but is no genrpc node.",
        )
    # HTTP/2 ends a stream that is written to no more with RST_STREAM: that is no breach.
    if code in _NO_NODE and not details.startswith(WRITE_FAILED) and "RST_STREAM" not in details:
        return BadTCP("corrupt_data", message=f"The stream broke with {code.name}: {details}.")
    return BadTCP("closed")


def _last_words(details: str) -> str:
    return f"The TLS handshake failed: {details.rpartition('last error: ')[2]}."
