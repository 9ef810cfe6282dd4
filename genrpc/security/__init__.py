"""Who may speak to whom: the cookie, the handshake, tokens and certificates.

What a caller may then run is decided by `genrpc.policy`. Nothing here imports grpc, and
cryptography is imported only by the functions that need it.
"""

from genrpc.security.certificates import (
    Identities,
    MadeCertificate,
    TlsFiles,
    check_key_file,
    check_listen_address,
    fingerprint,
    identities,
    is_open_to_others,
    load_tls,
    make_authority,
    make_certificate,
    names_node,
)
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
    "Identities",
    "MadeCertificate",
    "TlsFiles",
    "Token",
    "TokenError",
    "challenge_fault",
    "check_key_file",
    "check_listen_address",
    "check_token",
    "client_proof",
    "cookie_path",
    "cookie_text",
    "derive_key",
    "fingerprint",
    "hello_fault",
    "identities",
    "is_open_to_others",
    "load_cookie",
    "load_tls",
    "make_authority",
    "make_certificate",
    "make_token",
    "matches",
    "names_node",
    "new_nonce",
    "server_proof",
    "transcript",
]
