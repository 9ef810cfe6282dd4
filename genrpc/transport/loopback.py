"""A stream within the process: how a node calls itself, without the network.

Both ends are on the loop thread; a frame arrives in the loop's next round.
"""

from __future__ import annotations

import asyncio

from .stream import Done, StreamOwner


class LoopbackStream:
    """One end; `pair` makes two that are joined."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._owner: StreamOwner | None = None
        self._other: LoopbackStream | None = None
        self._ended = False

    @classmethod
    def pair(cls, loop: asyncio.AbstractEventLoop) -> tuple[LoopbackStream, LoopbackStream]:
        """Make both ends of a stream."""
        one, two = cls(loop), cls(loop)
        one._other, two._other = two, one
        return one, two

    def start(self, owner: StreamOwner) -> None:
        """Begin to read."""
        self._owner = owner

    def write(self, frame: bytes, done: Done) -> None:
        """Write a frame; the next may follow when this one has arrived."""
        self._loop.call_soon(self._deliver, frame, done)

    def _deliver(self, frame: bytes, done: Done) -> None:
        other = self._other
        if other is not None and other._owner is not None and not other._ended:
            other._owner.received(frame)
        done(None)

    def half_close(self) -> None:
        """Nothing more will be written: the other end is over."""
        if self._other is not None:
            self._loop.call_soon(self._other._end)

    def abort(self) -> None:
        """End both ends now."""
        self.half_close()
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._owner is not None:
                self._owner.ended(None)
            self.half_close()
