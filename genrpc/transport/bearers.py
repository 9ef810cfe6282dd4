"""Who calls a unary method: the bearer of a token, and nobody else.

The token comes as `authorization: Bearer <token>`, over loopback or TLS only: in the clear, on a
network, it would be anybody's. A caller that is turned away is told one sentence, whatever was
wrong; the audit log has the reason, never the token. For the loop thread.
"""

from __future__ import annotations

import ipaddress
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from genrpc.security import Cookie, Token, TokenError, check_token
from genrpc.telemetry import Audit

from .refusals import RefusedError, refuse

_MESSAGE = (
    "This node wants metadata 'authorization: Bearer <token>' with a token of its cookie, as"
    " `genrpc token` prints it, that has not expired and is not for another node."
)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who has shown a good token, and from which address."""

    token: Token
    address: str

    @property
    def peer(self) -> str:
        """The caller's name in limits and logs: each token is a peer of its own."""
        return f"token {self.token.identity}"


class Gate:
    """Checks the tokens that come to one node."""

    def __init__(
        self, cookie: Cookie, node: str, audit: Audit, clock: Callable[[], float] = time.time
    ) -> None:
        self._cookie = cookie
        self._node = node
        self._audit = audit
        self._clock = clock

    async def admit(self, context: Any) -> Bearer:  # noqa: ANN401  # grpc has no types
        """Return the caller, or end the method."""
        try:
            if not is_private(context):
                raise TokenError("in_the_clear")
            text = _token_text(context.invocation_metadata() or ())
            token = check_token(self._cookie, text, node=self._node, now=self._clock())
            return Bearer(token, context.peer())
        except TokenError as error:
            self._audit.refused_authentication(context.peer(), f"token_{error.reason}")
        await refuse(context, RefusedError("invalid_cookie", _MESSAGE))


def _token_text(metadata: Any) -> str:  # noqa: ANN401  # grpc has no types
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1:
        raise TokenError("missing" if not values else "several")
    scheme, _, text = values[0].partition(" ")
    if scheme.lower() != "bearer":  # RFC 7235: of any case
        raise TokenError("scheme")
    return str(text)


def is_private(context: Any) -> bool:  # noqa: ANN401  # grpc has no types
    """Whether nobody can listen in on a call: it comes over TLS or from this machine."""
    if context.auth_context().get("transport_security_type") == [b"ssl"]:
        return True
    family, _, address = urllib.parse.unquote(context.peer()).partition(":")
    if family not in ("ipv4", "ipv6"):
        return False
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def is_loopback(address: str) -> bool:
    """Whether an IP address is of this machine alone."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback
