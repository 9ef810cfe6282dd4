"""What a session tells its owner: the results of receiving a frame, or of time passing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrpc.errors import BadRPC, BadTCP

    from .pending import Call, IncomingCall


class ProtocolError(Exception):
    """The other side broke the protocol; the stream is of no use any more.

    `reason` is the word that the callers get: "corrupt_data", "invalid_cookie", "badnode".
    """

    def __init__(self, message: str, reason: str = "corrupt_data") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Opened:
    """The handshake succeeded: the other side is who it should be."""

    session_id: str
    peer: str


@dataclass(frozen=True, slots=True)
class CallsEnded:
    """These calls have their outcome; each is to be woken, once."""

    calls: list[Call]


@dataclass(frozen=True, slots=True)
class CallsReturned:
    """The server leaves; these calls were not handed over and want another stream."""

    calls: list[Call]


@dataclass(frozen=True, slots=True)
class CallsArrived:
    """These calls are to be run."""

    calls: list[IncomingCall]


@dataclass(frozen=True, slots=True)
class CallsCancelled:
    """Nobody waits for the outcome of these calls any more; each is still to be answered for."""

    calls: list[IncomingCall]


@dataclass(frozen=True, slots=True)
class TransferRefused:
    """A large call was refused at its first chunk, before it was received.

    `limit` is the name of the one that it would break.
    """

    call: IncomingCall
    reason: str
    message: str
    limit: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A ping came back after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drained:
    """The session is leaving and nothing is in flight on it: its stream may be closed."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over; every call that it had is in an event before this one."""

    failure: BadRPC | BadTCP | None = field(default=None)


Event = (
    Opened
    | CallsEnded
    | CallsReturned
    | CallsArrived
    | CallsCancelled
    | TransferRefused
    | Answered
    | Drained
    | Closed
)
