"""Who may speak to whom: the cookie, the handshake, tokens and certificates.

What a caller may then run is decided by `genrpc.policy`. Nothing here imports grpc, and
cryptography is imported only by the functions that need it.
"""

from genrpc.security.cookie import Cookie, cookie_path, cookie_text, load_cookie
from genrpc.security.handshake import (
    REVISION,
    challenge_fault,
    client_proof,
    derive_key,
    hello_fault,
    matches,
    new_nonce,
    server_proof,
    transcript,
)
from genrpc.security.tokens import Token, TokenError, check_token, make_token

__all__ = [
    "REVISION",
    "Cookie",
    "Token",
    "TokenError",
    "challenge_fault",
    "check_token",
    "client_proof",
    "cookie_path",
    "cookie_text",
    "derive_key",
    "hello_fault",
    "load_cookie",
    "make_token",
    "matches",
    "new_nonce",
    "server_proof",
    "transcript",
]
