"""The fixtures for pytest, the only module here that imports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from genrpc.testing import cluster, pair

if TYPE_CHECKING:
    from genrpc.local_node import Node
    from genrpc.testing.cluster_nodes import Cluster


@pytest.fixture
def genrpc_pair() -> Iterator[tuple[Node, Node]]:
    """Two genrpc nodes in this process, (a, b), that find each other by name."""
    with pair() as nodes:
        yield nodes


@pytest.fixture
def genrpc_cluster() -> Iterator[Callable[..., Cluster]]:
    """A function (n, **settings) that starts genrpc nodes as processes; they end with the test."""
    with ExitStack() as stack:
        clusters = []

        def start(n: int, **settings: object) -> Cluster:
            nodes = stack.enter_context(cluster(n, **settings))
            clusters.append(nodes)
            return nodes

        yield start
        for nodes in clusters:  # which pytest shows with a test that failed
            for name, text in zip(nodes.names, nodes.outputs(), strict=True):
                if text:
                    print(f"--- {name} wrote:\n{text}", end="")
