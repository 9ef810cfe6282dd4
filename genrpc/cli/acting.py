"""The node that acts for a command: client-only, stopped when the command ends."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrpc.local_node import Node

STOP_SECONDS = 1.0
"""What was cast, and that a call was cancelled, may take so long to be sent at the end."""


@contextlib.contextmanager
def acting(stop_seconds: float = STOP_SECONDS) -> Iterator[Node]:
    """Give the process's default node for the duration of a block."""
    # Imported here: it brings gRPC.
    from genrpc import default

    try:
        yield default.acting_node()
    finally:
        default.stop(stop_seconds)


def timeout_of(args: Namespace) -> float | None:
    """The value of --timeout, or what stands for the setting's."""
    from genrpc.calling import DEFAULT

    found: float | None = getattr(args, "timeout", DEFAULT)
    return found
