"""The process's default node: the only mutable global of the package.

Functions of the doors act for `via`; without it, inside a function that was called by another
node, for the node that runs it; else for the default node. A process that has started none gets
a client-only one, without a listener, at its first call.
"""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.parse
from collections.abc import Iterator

from genrpc import security
from genrpc.executor import current
from genrpc.local_node import Node
from genrpc.names import DEFAULT_HOST, bracketed, program_name
from genrpc.settings import Settings
from genrpc.transport.loop import check_not_forked

NODE_URI = "genrpc://"
"""How the name of a node is written in a certificate."""

_lock = threading.Lock()
_default: Node | None = None
_serves = False  # whether it was made by start(), not by a first call


def start(name: str | None = None, **settings: object) -> Node:
    """Start the process's default node, which serves; returns it, also for `with`.

    `name` is `name@host` (a bare name means @127.0.0.1), by default the program's name; the
    settings are those of `genrpc.Settings`. Raises RuntimeError if there is one already,
    ConfigurationError for a wrong setting, OSError if a port that was asked for is taken.
    """
    global _default, _serves
    check_not_forked()
    node = Node(name or f"{program_name()}@{DEFAULT_HOST}", Settings(**settings))
    with _lock:
        if _default is not None and _serves and not _default.is_stopped:
            raise RuntimeError(
                f"{_default.name} is this process's node already: stop it first with genrpc.stop(),"
                " or make a further node with genrpc.Node"
            )
        node.start()
        former, _default, _serves = _default, node, True
    if former is not None:
        former.stop()
    return node


def stop(grace: float = 2.0) -> None:
    """Stop the default node, if there is one; see Node.stop."""
    global _default, _serves
    with _lock:
        node, _default, _serves = _default, None, False
    if node is not None:
        node.stop(grace)


def acting_node(via: Node | None = None) -> Node:
    """The node for which a function acts."""
    if via is not None:
        if not isinstance(via, Node):
            raise TypeError(f"via is a genrpc.Node, not {via!r:.100}")
        return via
    running = current.get()
    if running is not None:
        node: Node = running.node
        return node
    default = _default
    return default if default is not None and not default.is_stopped else _default_node()


def _default_node() -> Node:
    global _default, _serves
    node = _default
    if node is None or node.is_stopped:
        check_not_forked()
        with _lock:
            if _default is None or _default.is_stopped:
                client_only = Settings(tcp_server_port=None)
                node = Node(_client_name(client_only), client_only)
                # Under the name in its certificate, it may be there to call the node of that name.
                node.answers_itself = client_only.certfile is None
                _default, _serves = node.start(), False
            node = _default
    return node


def _client_name(settings: Settings) -> str:
    """The name of a client-only node: the one that its certificate has, if it has one."""
    name, host = f"{program_name()}-{os.getpid()}", DEFAULT_HOST
    files = security.load_tls(settings)
    if files is not None:
        found = security.identities(files.certificate)
        for uri in found.uris:
            if uri.startswith(NODE_URI):
                return urllib.parse.unquote(uri[len(NODE_URI) :])
        host = next(iter((*found.dns, *found.ips)), host)
    return f"{name}@{bracketed(host)}"


@contextlib.contextmanager
def replaced_by(node: Node, *, serves: bool) -> Iterator[Node]:
    """Make a started node the default for the duration of a block.

    One that `serves` stays it in the block, as one that `start` made; another gives way to `start`.
    """
    global _default, _serves
    with _lock:
        former, _default, _serves = (_default, _serves), node, serves
    try:
        yield node
    finally:
        with _lock:
            _default, _serves = former
