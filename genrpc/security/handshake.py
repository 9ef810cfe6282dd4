"""Prove, both ways, that the two ends of a stream know the same cookie.

The messages and their order are in the comments of genrpc.proto ("The handshake on the
stream"), with a test vector. Here are the pure functions: what is proved (`transcript`), the
two proofs, and the faults that end a handshake before any proof is looked at.

Rules: no secret is ever sent; the client proves first, so that a stranger gets nothing to
attack offline; a proof holds for one direction, one pair of nodes, one pair of nonces and one
stream. Nothing here keeps state or reads a clock: any thread may call it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Only for annotations: making a token must not wait for protobuf.
    from genrpc._generated.genrpc.v1.genrpc_pb2 import Challenge, Hello

REVISION = 1  # the only protocol revision there is
PROOF_BYTES = 32  # HMAC-SHA256
NONCE_BYTES = 32

# A hello comes from a stranger. Its fields are kept for the life of the session and written to
# logs, so they are bounded here and not by the size of the frame alone.
MAX_NODE_LENGTH = 255
MAX_SHARD_KEY_LENGTH = 256
MAX_CONTENT_TYPES = 16
MAX_CONTENT_TYPE_LENGTH = 128
MAX_INSTANCE_ID_LENGTH = 128

Fault = tuple[str, str]
"""The reason word of a BadRPC, and a sentence for the log."""


def derive_key(cookie: bytes) -> bytes:
    """Derive K, the key of every proof and token, so that the cookie itself can be forgotten."""
    return hmac.digest(cookie, b"genrpc/1 cookie key", "sha256")


def new_nonce() -> bytes:
    """Draw the 32 random bytes of one side."""
    return secrets.token_bytes(NONCE_BYTES)


def transcript(hello: Hello, challenge: Challenge) -> bytes:
    """Hash everything that the two sides said, in the order that genrpc.proto lays down (th).

    Each field is preceded by its length, so that no text can move from one field to the next.
    """
    fields = (
        b"genrpc/1",
        _u32(hello.revision_min),
        _u32(hello.revision_max),
        hello.node.encode(),
        hello.target_node.encode(),
        hello.nonce,
        hello.shard_key.encode(),
        b"\x01" if hello.want_pickle else b"\x00",
        ",".join(hello.content_types).encode(),
        _u32(challenge.revision),
        challenge.node.encode(),
        challenge.nonce,
        challenge.instance_id.encode(),
    )
    return hashlib.sha256(b"".join(_u32(len(field)) + field for field in fields)).digest()


def client_proof(key: bytes, th: bytes) -> bytes:
    """Return what the client sends in AuthProof: 32 bytes."""
    return hmac.digest(key, b"client" + th, "sha256")


def server_proof(key: bytes, th: bytes) -> bytes:
    """Return what the server sends in Welcome, after it has accepted the client's: 32 bytes."""
    return hmac.digest(key, b"server" + th, "sha256")


def matches(expected: bytes, given: bytes) -> bool:
    """Tell in constant time whether a proof is right; both must have exactly 32 bytes."""
    if len(expected) != PROOF_BYTES or len(given) != PROOF_BYTES:
        return False
    return hmac.compare_digest(expected, given)


def hello_fault(hello: Hello, own_node: str) -> Fault | None:
    """Say why the server refuses this hello; None if it may answer with a challenge."""
    if len(hello.nonce) != NONCE_BYTES:
        return _corrupt(f"the hello's nonce has {len(hello.nonce)} bytes instead of {NONCE_BYTES}")
    if not hello.revision_min <= REVISION <= hello.revision_max:
        return _corrupt(
            f"the caller speaks the protocol revisions {hello.revision_min} to "
            f"{hello.revision_max}, this node only {REVISION}"
        )
    if max(len(hello.node), len(hello.target_node)) > MAX_NODE_LENGTH:
        return _corrupt(f"a node name in the hello is longer than {MAX_NODE_LENGTH} characters")
    if not hello.node.isprintable():  # it goes into logs
        return _corrupt("the caller's node name has characters that cannot be printed")
    if len(hello.shard_key) > MAX_SHARD_KEY_LENGTH:
        return _corrupt(f"the hello's shard key is longer than {MAX_SHARD_KEY_LENGTH} characters")
    fault = _content_types_fault(hello)
    if fault is None and hello.target_node != own_node:
        fault = _badnode(f"the caller looks for {hello.target_node!r}, this node is {own_node!r}")
    return fault


def _content_types_fault(hello: Hello) -> Fault | None:
    if len(hello.content_types) > MAX_CONTENT_TYPES:
        return _corrupt(f"the hello has more than {MAX_CONTENT_TYPES} content types")
    for name in hello.content_types:
        # The transcript joins them with commas: with an empty name or a comma in one, two
        # different lists would have the same proof.
        if not name or "," in name or len(name) > MAX_CONTENT_TYPE_LENGTH:
            return _corrupt(
                "a content type in the hello is empty, has a comma or is longer than "
                f"{MAX_CONTENT_TYPE_LENGTH} characters"
            )
    return None


def challenge_fault(hello: Hello, challenge: Challenge) -> Fault | None:
    """Say why the client ends the handshake at this challenge; None if it may prove itself."""
    if len(challenge.nonce) != NONCE_BYTES:
        return _corrupt(
            f"the challenge's nonce has {len(challenge.nonce)} bytes instead of {NONCE_BYTES}"
        )
    if challenge.nonce == hello.nonce:
        return _corrupt("the challenge repeats the caller's own nonce")
    if not hello.revision_min <= challenge.revision <= hello.revision_max:
        return _corrupt(
            f"the peer chose protocol revision {challenge.revision}, offered were "
            f"{hello.revision_min} to {hello.revision_max}"
        )
    if len(challenge.instance_id) > MAX_INSTANCE_ID_LENGTH:
        return _corrupt(
            f"the challenge's instance id is longer than {MAX_INSTANCE_ID_LENGTH} characters"
        )
    if challenge.node != hello.target_node:
        # The peer's name is a stranger's text of any length: show a bounded part of it.
        return _badnode(
            f"the node at this address is {challenge.node[:MAX_NODE_LENGTH]!r}, "
            f"not {hello.target_node!r}"
        )
    return None


def _corrupt(message: str) -> Fault:
    return ("corrupt_data", message)


def _badnode(message: str) -> Fault:
    return ("badnode", message)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
