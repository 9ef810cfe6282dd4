"""Names and cookies that are used once. Any thread may call this."""

from __future__ import annotations

import secrets
import string


def new_cookie() -> str:
    """A cookie that nobody can guess."""
    return secrets.token_hex(32)


def new_name(prefix: str) -> str:
    """A node's name that no other node of this machine has.

    It ends in a letter: digits at the end mean a port where port_discovery is "stateless".
    """
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(10))
    return f"{prefix}-{letters}@127.0.0.1"
