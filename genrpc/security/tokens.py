"""Tokens: what callers of the unary methods show instead of the handshake.

A token is one URL-safe word, `g1.<claims>.<mac>`: JSON and its HMAC-SHA256, both in base64url
without padding. The key of the MAC is derived from the cookie, so that every node of the
cookie can make and check tokens, and a MAC made for one purpose is worth nothing for another.

Rules: nothing of a token is believed, or even parsed, before its MAC was compared in constant
time; there is exactly one spelling of each token; the caller learns only that it was refused,
the reason is for the log. There is no claim for pickles, so no token can carry that right.
Time is an argument (seconds since the epoch, as `time.time()` gives). Any thread may call this.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from genrpc.names import check_target
from genrpc.security.cookie import Cookie

MAX_TOKEN_BYTES = 4096
"""A token travels in gRPC metadata, which is limited to 16 KiB in all."""

_VERSION = "g1"
_CLAIMS = {"allow": list, "aud": str, "exp": float, "id": str, "iss": str}


class TokenError(Exception):
    """A token was refused. `reason` is one word for the log; the caller is not told."""

    def __init__(self, reason: str) -> None:
        super().__init__("The token was refused.")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Token:
    """What a good token says."""

    issuer: str
    """The node or program that made it; for the log."""
    audience: str
    """The only node that takes it; empty: any node of the cookie."""
    expires: float
    """Seconds since the epoch."""
    allow: tuple[str, ...]
    """What its bearer may call; empty: whatever the node's policy admits."""
    identity: str
    """Names the bearer in limits and logs, without being of use as a token."""

    def allows(self, module: str, function: str) -> bool:
        """Tell whether the allow list has this function; the node's policy comes on top.

        "math.sqrt" and "math:sqrt" are one function, "math.*" the public functions of module
        math (not of math.deeper), "pkg.mod:Class.*" methods of a class, "*" everything. Names
        are compared as they are, case and all.
        """
        return not self.allow or any(_allows(entry, module, function) for entry in self.allow)


def make_token(
    cookie: Cookie,
    *,
    ttl: float = 600.0,
    allow: Sequence[str] = (),
    audience: str = "",
    issuer: str = "",
    now: float,
) -> str:
    """Make a token that is good for `ttl` seconds from `now`.

    `allow` limits what may be called, as `Token.allows` tells; `audience` is the only node that
    shall take it. Raises TypeError or ValueError for a limit that could never work as meant.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"A token's ttl is a number of seconds, not {ttl!r}.")
    if not (math.isfinite(ttl) and ttl > 0):
        raise ValueError(f"A token's ttl must be a finite number of seconds above 0, not {ttl!r}.")
    if isinstance(allow, str):
        raise TypeError(f"A token's allow list is a sequence of texts, not the text {allow!r}.")
    for entry in allow:
        _check_entry(entry)
    claims = {
        "allow": list(allow),
        "aud": audience,
        "exp": float(now + ttl),
        # Two tokens that were made in the same moment are still two bearers.
        "id": secrets.token_hex(8),
        "iss": issuer,
    }
    text = json.dumps(claims, separators=(",", ":"), sort_keys=True)
    signed = f"{_VERSION}.{_encode(text.encode())}"
    token = f"{signed}.{_encode(_mac(cookie, signed))}"
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(
            f"The token would have {len(token)} bytes and may have {MAX_TOKEN_BYTES}: "
            "shorten its allow list, for example by entries such as 'module.*'."
        )
    return token


def check_token(cookie: Cookie, text: str, *, node: str, now: float) -> Token:
    """Return what the token says, if `node` takes it at the time `now`; else raise TokenError."""
    if len(text) > MAX_TOKEN_BYTES:
        raise TokenError("size")
    parts = text.split(".")
    if len(parts) != 3 or not text.isascii():
        raise TokenError("format")
    version, body, proof = parts
    if version != _VERSION:
        raise TokenError("version")
    if not hmac.compare_digest(_decode(proof), _mac(cookie, f"{version}.{body}")):
        raise TokenError("proof")
    token = _token_of(_decode(body), text)
    if now >= token.expires:
        raise TokenError("expired")
    if token.audience not in ("", node):
        raise TokenError("audience")
    return token


def _mac(cookie: Cookie, signed: str) -> bytes:
    key = hmac.digest(cookie.key, b"genrpc/1 token key", "sha256")
    return hmac.digest(key, signed.encode(), "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise TokenError("format") from None
    # Up to four bits of the last character do not count, and "+/" pass for "-_": without this,
    # one token would have several spellings, and each would be a bearer of its own.
    if _encode(data) != text:
        raise TokenError("format")
    return data


def _token_of(data: bytes, text: str) -> Token:
    """Take the claims for what they must be; somebody who knows the cookie wrote them."""
    try:
        claims = json.loads(data)
    except (ValueError, RecursionError):
        raise TokenError("claims") from None
    if not isinstance(claims, dict) or {k: type(v) for k, v in claims.items()} != _CLAIMS:
        raise TokenError("claims")
    # A claim that this version does not know could be a limit: it was refused above. So is NaN
    # here, which would never be in the past.
    if not math.isfinite(claims["exp"]) or not all(isinstance(e, str) for e in claims["allow"]):
        raise TokenError("claims")
    return Token(
        issuer=claims["iss"],
        audience=claims["aud"],
        expires=claims["exp"],
        allow=tuple(claims["allow"]),
        identity=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def _parted(entry: str) -> tuple[str, str]:
    """Part an entry into module and function: at the colon, or else at the last dot."""
    if ":" in entry:
        module, _, function = entry.partition(":")
    else:
        module, _, function = entry.rpartition(".")
    return module, function


def _check_entry(entry: str) -> None:
    if entry == "*":
        return
    try:
        module, function = _parted(entry)
        # A star stands for letters of a name, so a name with letters in its place must be good.
        check_target(module, function.replace("*", "x"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{entry!r} in a token's allow list names no function: write 'module.function', "
            "'module:Class.method', 'module.*' for the functions of a module, or '*' for all."
        ) from error


def _allows(entry: str, module: str, function: str) -> bool:
    if entry == "*":
        return True
    allowed_module, pattern = _parted(entry)
    if module != allowed_module:
        return False
    if "*" not in pattern:
        return function == pattern
    # Not fnmatch: "?" and "[" would be special too. A star never opens what is private.
    expression = ".*".join(map(re.escape, pattern.split("*")))
    private = any(part.startswith("_") for part in function.split("."))
    return not private and re.fullmatch(expression, function, re.DOTALL) is not None
