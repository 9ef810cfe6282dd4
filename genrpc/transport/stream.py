"""A bidirectional gRPC stream of bytes, in either role; the one place where grpc.aio is driven.

    stream.write(frame, done)   one at a time; `done(error or None)` when it was accepted
    stream.start(owner)         from now on owner.received(frame), and owner.ended(failure) once
    stream.half_close()         nothing more will be written
    stream.abort()              end it now

Only the loop thread may use it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import grpc

from genrpc.errors import BadRPC, BadTCP

from .status import TLS_REFUSED, WRITE_FAILED, failure_of

log = logging.getLogger("genrpc")

Done = Callable[[BaseException | None], None]

WRITE_SECONDS = 1.0
"""How long a caller that does not read can keep the end of its stream waiting."""


ASK_SECONDS = 1.0
"""How long the answer may take of what is asked once more; see ClientStream."""


class StreamOwner(Protocol):
    """Who is told what comes."""

    def received(self, frame: bytes) -> None:
        """A frame came."""

    def ended(self, failure: BadRPC | BadTCP | None) -> None:
        """The stream is over; None: the other side closed it in good order."""


if sys.version_info >= (3, 12):

    def drive(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, done: Done
    ) -> None:
        """Begin a coroutine in place, without a round of the loop; see below."""
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        if task.done():
            done(_error_of(task))
        else:
            task.add_done_callback(lambda t: done(_error_of(t)))

    def _error_of(task: asyncio.Task[None]) -> BaseException | None:
        return asyncio.CancelledError() if task.cancelled() else task.exception()

else:

    def drive(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, done: Done
    ) -> None:
        """Begin a coroutine in place, without a round of the loop.

        A task per write would start it a round later: that made a lone call 20 to 30 % slower.
        Python 3.12 has eager tasks for this; before, the first steps are taken by hand, as
        a task would take them.
        """
        _ByHand(coroutine, done).step()


class _ByHand:
    """Takes the steps of a coroutine. (No closure that knows itself: those need the collector.)"""

    __slots__ = ("coroutine", "done")

    def __init__(self, coroutine: Coroutine[Any, Any, None], done: Done) -> None:
        self.coroutine = coroutine
        self.done = done

    def step(self, _: object = None) -> None:
        """Go on until the coroutine waits, or ends."""
        try:
            future = self.coroutine.send(None)
        except StopIteration:
            self.done(None)
        except BaseException as exc:  # whatever it is, `done` is told
            self.done(exc)
        else:
            # As a task does when it has seen what its coroutine waits for.
            future._asyncio_future_blocking = False
            future.add_done_callback(self.step)


class Stream:
    """One stream; `call` is grpc.aio's call of a client or context of a server."""

    def __init__(self, call: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401
        self._call = call
        self._loop = loop
        self._reader: asyncio.Task[None] | None = None

    @property
    def _is_over(self) -> bool:
        """Whether nothing is read any more, although gRPC may have something."""
        return False

    def start(self, owner: StreamOwner) -> None:
        """Begin to read; `owner` is told of each frame and, once, of the end."""
        self._reader = self._loop.create_task(self._read(owner))

    def write(self, frame: bytes, done: Done) -> None:
        """Write a frame; no other may be in flight. `done` may be called before this returns."""
        drive(self._call.write(frame), self._loop, done)

    async def _read(self, owner: StreamOwner) -> None:
        read, end, received = self._call.read, grpc.aio.EOF, owner.received
        frame = b""
        try:
            while (frame := await read()) is not end and not self._is_over:
                received(frame)
        except grpc.RpcError as exc:
            owner.ended(failure_of(exc if frame else await self._first_words(exc, owner)))
        except asyncio.CancelledError:
            owner.ended(BadTCP("closed"))
        except Exception as exc:  # grpc.aio raises several of its own; none may pass in silence
            if self._is_over:  # a read that outlives its handler is told that the call is over
                owner.ended(BadTCP("closed"))
                return
            log.warning("A stream broke", exc_info=True)
            owner.ended(BadTCP("closed", message=f"The stream broke: {exc!r}"))
        else:
            owner.ended(None)

    async def _first_words(self, error: grpc.RpcError, owner: StreamOwner) -> grpc.RpcError:
        """What a stream ended with on which no frame came."""
        return error


class ClientStream(Stream):
    """The stream that this node dialled; `call_again` begins another on its connection, which
    `hang_up` closes.
    """

    def __init__(
        self,
        call_again: Callable[[], Any],  # grpc has no types
        loop: asyncio.AbstractEventLoop,
        hang_up: Callable[[], object],
    ) -> None:
        super().__init__(call_again(), loop)
        self._call_again = call_again
        self._hang_up = hang_up

    async def _first_words(self, error: grpc.RpcError, owner: StreamOwner) -> grpc.RpcError:
        """What a stream ended with on which no frame came.

        If it ends while the first frame is being written, grpc.aio tells of that write only: of
        ten servers of something else, one could not be told from one that went away. So what
        is there is asked once more, with nothing to write.
        """
        if not (error.details() or "").startswith(WRITE_FAILED):
            return error
        call = self._call_again()
        try:
            frame = await asyncio.wait_for(call.read(), ASK_SECONDS)
        except grpc.RpcError as told:
            return told
        except asyncio.TimeoutError:  # it waits for our words, as a node does
            return error
        finally:
            call.cancel()
        if frame is not grpc.aio.EOF:
            owner.received(frame)
        return error

    async def _read(self, owner: StreamOwner) -> None:
        try:
            await super()._read(owner)
        finally:
            self._hang_up()

    def half_close(self) -> None:
        """Say that nothing more will be written."""
        drive(self._call.done_writing(), self._loop, lambda error: None)

    def abort(self) -> None:
        """End it now."""
        self._call.cancel()
        if self._reader is None:  # else it does when it ends
            self._hang_up()


class ServerStream(Stream):
    """A stream that was accepted; it ends when its handler returns."""

    def __init__(self, call: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401
        super().__init__(call, loop)
        self._over: asyncio.Future[None] = loop.create_future()
        self._done: Done | None = None  # of the write that is in flight
        self._ending = False

    def write(self, frame: bytes, done: Done) -> None:
        """Write a frame; see Stream."""
        self._done = done
        drive(self._call.write(frame), self._loop, self._written)

    def _written(self, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if self._ending:
            self._end()
        if done is not None:
            done(error)

    @property
    def _is_over(self) -> bool:
        """Whether the handler has returned, or is about to: gRPC takes a further read ill."""
        return self._over.done()

    @property
    def certificate(self) -> bytes | None:
        """The certificate that the client showed, PEM; None without TLS."""
        shown = self._call.auth_context().get("x509_pem_cert")
        return shown[0] if shown else None

    def refuse_certificate(self, fault: str) -> None:
        """Let the stream, when it ends, tell the client what is wrong with its certificate."""
        self._call.set_code(grpc.StatusCode.UNAUTHENTICATED)
        self._call.set_details(TLS_REFUSED + fault)

    def half_close(self) -> None:
        """End it, after what was written."""
        self._ending = True
        if self._done is None:
            self._end()
        else:  # gRPC takes it ill when a handler returns while its first write is in flight
            self._loop.call_later(WRITE_SECONDS, self._end)

    def abort(self) -> None:
        """End it, as soon as gRPC allows: see half_close."""
        self.half_close()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def wait(self) -> None:
        """Stay until the stream is to end.

        The reader then ends by itself, for gRPC ends its read. To cancel it would leave memory of
        gRPC's behind, 100 to 600 bytes each time: grpc.aio frees what a read takes, and what it
        brings, where the read is awaited.
        """
        await self._over
