"""The handshake as sessions want it: by the cookie, and by the client's certificate under TLS."""

from __future__ import annotations

from typing import Any

from genrpc import security
from genrpc.transport.stream import ServerStream
from genrpc.transport.tls import certificate_fault


class CookieAuthenticator:
    """The handshake by the cookie, as sessions want it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def with_certificate_of(self, stream: ServerStream) -> CookieAuthenticator:
        """The same for this stream alone: what its client showed must be of its node."""
        certificate = stream.certificate
        if certificate is None:
            return self
        return _CertifiedAuthenticator(self._key, certificate, stream)

    def new_nonce(self) -> bytes:
        """32 random bytes."""
        return security.new_nonce()

    def hello_fault(self, hello: Any, node: str) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a hello."""
        return security.hello_fault(hello, node)

    def challenge_fault(self, hello: Any, challenge: Any) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a challenge."""
        return security.challenge_fault(hello, challenge)

    def client_proof(self, hello: Any, challenge: Any) -> bytes:  # noqa: ANN401
        """The client's proof."""
        return security.client_proof(self._key, security.transcript(hello, challenge))

    def server_proof(self, hello: Any, challenge: Any) -> bytes:  # noqa: ANN401
        """The server's proof."""
        return security.server_proof(self._key, security.transcript(hello, challenge))

    def matches(self, expected: bytes, given: bytes) -> bool:
        """Compare in constant time."""
        return security.matches(expected, given)


class _CertifiedAuthenticator(CookieAuthenticator):
    """The handshake by the cookie, between two that have shown their certificates."""

    def __init__(self, key: bytes, certificate: bytes, stream: ServerStream) -> None:
        super().__init__(key)
        self._certificate = certificate
        self._stream = stream

    def hello_fault(self, hello: Any, node: str) -> tuple[str, str] | None:  # noqa: ANN401
        """What is wrong with a hello: its node may not be that of the certificate."""
        fault = certificate_fault(self._certificate, hello.node)
        if fault is None:
            return super().hello_fault(hello, node)
        self._stream.refuse_certificate(fault)
        return "tls", fault
