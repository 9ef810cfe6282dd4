"""Nodes in this process for the tests of what nodes do to each other.

`Nodes` starts them with one cookie and lets them find each other by name; all end with the test.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack

from genrpc import Node, Settings

# tests/security marks it, and looks for the mark in all that is written.
COOKIE = os.environ.get("TESTS_COOKIE", "0123456789abcdef0123456789abcdef")


class Nodes:
    """Starts nodes, and stops them at the end."""

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self._stack = ExitStack()
        self._suffix = secrets.token_hex(3)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def find(self, name: str) -> tuple[str, int] | None:
        """The nodes' port_discovery."""
        return self.addresses.get(name)

    def settings(self, **changes: object) -> Settings:
        common = {"cookie": COOKIE, "tcp_server_port": 0, "port_discovery": self.find}
        return Settings(**{**common, **changes})

    def name(self, letter: str) -> str:
        return f"{letter}-{self._suffix}@127.0.0.1"

    def start(self, letter: str = "a", **changes: object) -> Node:
        node = Node(self.name(letter), self.settings(**changes)).start()
        self._stack.callback(node.stop, 0)
        if node.port is not None:
            self.addresses[node.name] = ("127.0.0.1", node.port)
        return node


def is_at_rest(node: Node) -> bool:
    """Whether nothing runs or waits on a node, and nothing that was counted still counts."""
    reception = node._reception
    return (
        reception.running == 0
        and not reception.calls_of
        and reception.calls == 0
        and reception.handshakes == 0
        and not node._executor._lanes
        and node._executor.statistics()["queued"] == 0
        and node._executor.statistics()["running"] == 0
    )
