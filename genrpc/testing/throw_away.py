"""Names and settings of nodes that live for one test. Any thread may call this."""

from __future__ import annotations

import secrets
import string


def private_settings() -> dict[str, object]:
    """Settings for nodes that nobody but this user's test can call: a cookie, free ports.

    Those of TLS are none, whatever the environment says: no certificate fits names made up here.
    """
    return {
        "cookie": secrets.token_hex(32),
        "listen_address": "127.0.0.1",
        "tcp_server_port": 0,
        # Where a node is looked for that has ended: at a port of none, so that econnrefused is
        # certain. At the usual one another node of this machine might answer, as badnode.
        "tcp_client_port": 1,
        "certfile": None,
        "keyfile": None,
        "cacertfile": None,
    }


def new_name(prefix: str) -> str:
    """A node's name that no other node of this machine has.

    It ends in a letter: digits at the end mean a port where port_discovery is "stateless".
    """
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(10))
    return f"{prefix}-{letters}@127.0.0.1"
