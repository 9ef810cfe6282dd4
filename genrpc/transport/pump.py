"""Drives one session over one stream: frames in, frames out, and the time.

A pump exists before its stream does (`attach` gives it one), as its session does, so that
calls made while dialling run against the same clock. Only the loop thread may use it; other
threads post to its mailbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic  # the clock of the loop; its own method only calls it
from typing import Generic, Protocol, TypeVar

from genrpc.errors import BadRPC, BadTCP
from genrpc.loops import Mailbox
from genrpc.protocol.events import Event
from genrpc.protocol.session import Phase, Session

from .stream import Done, StreamOwner

log = logging.getLogger("genrpc")

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

STALL_SECONDS = 0.05
"""How long calls may lie in the mailbox, without a clock, while a write is in flight."""

LEAVE_SECONDS = 5.0
"""How long the other side may take to end a stream that this side has closed."""


class AnyStream(Protocol):
    """A stream of frames: of gRPC in either role, or within the process."""

    def start(self, owner: StreamOwner) -> None:
        """Begin to read."""

    def write(self, frame: bytes, done: Done) -> None:
        """Write a frame; `done` is told when the next may follow."""

    def half_close(self) -> None:
        """Nothing more will be written."""

    def abort(self) -> None:
        """End the stream now."""


class PumpOwner(Protocol[T_contra]):
    """Who puts into the session what came by the mailbox, and is told what happens."""

    def take_in(self, items: Sequence[T_contra], now: float) -> None:
        """These came by the mailbox."""

    def handle(self, event: Event) -> None:
        """Something happened."""


class Pump(Generic[T]):
    """One session, its mailbox, its stream and its timer."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session: Session,
        owner: PumpOwner[T],
        mailbox: Mailbox[T],
    ) -> None:
        self.session = session
        self.over = False
        self._loop = loop
        self._owner = owner
        self._mailbox: Mailbox[T] | None = mailbox
        self._stream: AnyStream | None = None
        self._gone = False  # the stream has ended: nothing can be written any more
        self._writing = False
        self._flushing = False
        self._dispatching = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._leaving: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the owner's side

    def attach(self, stream: AnyStream) -> None:
        """Give the session its stream and begin."""
        self._stream = stream
        stream.start(self)
        self.flush()

    def flush(self) -> None:
        """Take in what waits, and send what the session has to say."""
        if self._writing or self._flushing or self.over:
            return
        self._flushing = True
        session, stream = self.session, self._stream
        is_news = False
        try:
            while True:
                now = monotonic()
                mailbox = self._mailbox
                if mailbox is not None and mailbox.items:
                    is_news = True
                    self._owner.take_in(mailbox.take(), now)
                frame = session.frame_to_send(now) if stream is not None else None
                if frame is not None and stream is not None:
                    is_news = self._writing = True
                    stream.write(frame, self._written)
                    if self._writing:
                        break
                elif mailbox is None or mailbox.rest():
                    break
        except Exception as exc:  # a fault of ours: better a lost stream than one that hangs
            log.exception("A stream was ended because of a fault in genrpc")
            session.close(BadTCP("closed", message=f"A fault of genrpc ended the stream: {exc!r}"))
        self._flushing = False
        # Two of three looks find nothing, and leave the timer as it is: that saves a lone call
        # some per cent of what it costs.
        if is_news or self._timer is None or session.phase is Phase.CLOSED:
            self._settle()
        else:
            self._dispatch()

    def detach_mailbox(self) -> None:
        """From now on drive only what the session has already; the mailbox goes to another."""
        self._mailbox = None

    def leave(self) -> None:
        """Close this side of the stream; the other side is given a while to end it."""
        if self._stream is not None and not self.over:
            self._stream.half_close()
            self._leaving = self._loop.call_later(LEAVE_SECONDS, self.close, None)

    def close(self, failure: BadRPC | BadTCP | None) -> None:
        """End the session, and its stream after what was written."""
        self.session.close(failure)
        self._settle()

    # ------------------------------------------------------------ the stream's side

    def received(self, frame: bytes) -> None:
        """Give a frame to the session; whatever it answers goes out at once."""
        self.session.receive(frame, monotonic())
        self._dispatch()
        self.flush()

    def ended(self, failure: BadRPC | BadTCP | None) -> None:
        """The stream is over; None: the other side closed it in good order."""
        if failure is None and self.session.phase is not Phase.LEAVING:
            failure = BadTCP("closed")
        self._gone = True
        self.session.close(failure)
        self._settle()

    def _written(self, error: BaseException | None) -> None:
        if error is not None:
            return  # the reader is told why; until then nothing more is written
        self._writing = False
        if not self._flushing:
            self.flush()

    # ------------------------------------------------------------ both

    def _dispatch(self) -> None:
        """Tell the owner of all events, in order, also of those that arise meanwhile."""
        if self._dispatching:
            return
        events = self.session.take_events()
        if not events:
            return
        self._dispatching = True
        handle = self._owner.handle
        while events:
            for event in events:
                try:
                    handle(event)
                except Exception:  # those that follow must be told of all the same
                    log.exception("Handling %s went wrong", type(event).__name__)
            events = self.session.take_events()
        self._dispatching = False

    def _settle(self) -> None:
        """After anything happened: tell of it, see whether this is the end, set the timer."""
        self._dispatch()
        if self.over:
            return
        if self.session.phase is Phase.CLOSED:
            if self._gone or not self.session.wants_to_send:
                self._finish()
                return
            if self._leaving is None:  # who does not read our last words is not waited for
                self._leaving = self._loop.call_later(LEAVE_SECONDS, self._finish)
        self._arm()

    def _finish(self) -> None:
        self.over = True
        for timer in (self._timer, self._leaving):
            if timer is not None:
                timer.cancel()
        if self._stream is not None:
            self._stream.abort()
            # gRPC closes the connection when nobody refers to the call any more.
            self._stream = None
        if self._mailbox is not None:
            self._mailbox.hand_over()
            self._mailbox = None
        # No circle may be left: strangers' streams come and go faster than the collector does,
        # which knows nothing of what gRPC keeps for each.
        del self._owner

    def _arm(self) -> None:
        deadline = self.session.next_deadline()
        if self._writing:
            stall = monotonic() + STALL_SECONDS
            deadline = stall if deadline is None else min(deadline, stall)
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return  # it comes early enough, and is then set anew
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(deadline, self._tick), deadline

    def _tick(self) -> None:
        self._timer = None
        now = monotonic()
        if self._mailbox is not None:
            self._owner.take_in(self._mailbox.take(), now)
        self.session.tick(now)
        self._dispatch()  # first, for a session that leaves takes nothing in any more
        self.flush()
        self._settle()
