"""For the tests of programs that use genrpc: nodes to call, and to kill.

    with genrpc.testing.cluster(3) as cluster:  # three processes
        genrpc.call(cluster.names[0], "math", "factorial", [5])
        cluster.kill(0)

    with genrpc.testing.pair() as (a, b):       # two nodes in this process
        genrpc.call(b.name, "genrpc", "node", via=a)

pytest has both as fixtures, without an import: `genrpc_cluster(3, receive_timeout=1)`, a factory
whose clusters end with the test, and `genrpc_pair`.

Each has a cookie of its own that nobody else knows, and ports that were free. Settings are those
of `genrpc.Settings`; what is not given comes from the environment as always. Use a cluster from
one thread at a time. pytest imports this module in every one of its runs: it must cost nothing,
so that all else is imported at its first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrpc.local_node import Node
    from genrpc.testing.cluster_nodes import Cluster as Cluster

__all__ = ["Cluster", "cluster", "pair"]

#: Read by pytest, for which this module is a plug-in by the package's entry point.
pytest_plugins = ("genrpc.testing.fixtures",)


def __getattr__(name: str) -> object:
    if name == "Cluster":
        from genrpc.testing.cluster_nodes import Cluster

        return Cluster
    raise AttributeError(f"module 'genrpc.testing' has no attribute {name!r}")


@contextmanager
def cluster(n: int, **settings: object) -> Iterator[Cluster]:
    """Run `n` nodes, each a process of its own, for the duration of a block.

    The nodes run this interpreter and can import what this process can. Meanwhile the default
    node of this process is another one, which has the cluster's cookie and finds its nodes by
    name; afterwards it is the former one, whose streams have stayed open.
    All processes are gone when the block ends, however it ends, and also when this process dies.

    Raises RuntimeError with what it wrote to stderr if a node does not start, and what
    `genrpc.Settings` raises for a wrong setting.
    """
    from genrpc import default
    from genrpc.testing.cluster_nodes import Cluster

    with ExitStack() as stack:
        nodes = stack.enter_context(Cluster(n, settings))
        stack.enter_context(default.replaced_by(nodes.caller, serves=False))
        yield nodes


@contextmanager
def pair(**settings: object) -> Iterator[tuple[Node, Node]]:
    """Run two nodes in this process that find each other by name, for the duration of a block.

    The process's default node stays what it is: name the caller by `via=`.
    """
    from genrpc.local_node import Node
    from genrpc.settings import Settings
    from genrpc.testing.throw_away import new_name, private_settings

    ports: dict[str, int | None] = {}

    def address(name: str) -> tuple[str, int] | None:
        port = ports.get(name)
        return None if port is None else ("127.0.0.1", port)

    common = Settings(**{**private_settings(), "port_discovery": address, **settings})
    with ExitStack() as stack:
        nodes = []
        for letter in "ab":
            node = Node(new_name(letter), common).start()
            stack.callback(node.stop, 0)
            ports[node.name] = node.port
            nodes.append(node)
        yield nodes[0], nodes[1]
