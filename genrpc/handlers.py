"""Named handlers: where the messages of abcast and sbcast go on a node.

Any thread may register and look up; messages come on workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("genrpc")


class Handlers:
    """The handlers of one node, by name."""

    def __init__(self) -> None:
        self._named: dict[str, tuple[Callable[[object], object], object]] = {}

    def register(self, name: str, handler: object) -> None:
        """Let `handler` (a callable, a queue.Queue or an asyncio.Queue) get messages for `name`."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"a handler is registered under a name (text), not {name!r}")
        self._named[name] = messenger(handler), handler

    def unregister(self, name: str) -> None:
        """Take a name back; one that is not registered is none the worse."""
        self._named.pop(name, None)

    def whereis(self, name: str) -> object:
        """The handler registered under a name, or None."""
        found = self._named.get(name)
        return found[1] if isinstance(found, tuple) else None

    def deliver(self, name: str, message: object) -> bool:
        """Hand a message to what is registered under `name`; False: nothing is."""
        found = self._named.get(name)
        if not isinstance(found, tuple):
            return False
        try:
            found[0](message)
        except Exception:  # the handler's own; the sender is not to suffer for it
            log.exception("The handler registered as %r raised", name)
        return True


def messenger(handler: object) -> Callable[[object], object]:
    """How a message is handed to a handler."""
    if callable(handler):
        return handler
    if isinstance(handler, asyncio.Queue):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise TypeError(
                "an asyncio.Queue must be registered from within its event loop, so that messages"
                " can be handed over to it"
            ) from None
        return lambda message: loop.call_soon_threadsafe(handler.put_nowait, message)
    put = getattr(handler, "put_nowait", None)
    if put is None:
        raise TypeError(
            f"a handler is a callable, a queue.Queue or an asyncio.Queue, not {handler!r:.100}"
        )
    return put  # type: ignore[no-any-return]  # of a queue
