"""What can go wrong with a call: values for one door, exceptions for the others.

Inside the library a failure is an exception; at the door of `genrpc.rpc` it becomes a value.
Each `CallError` knows its value (`error.value`), and `error_of` makes an exception of a value:

    BadTCP(reason)          TransportError (also ConnectionError)
    BadRPC("timeout")       CallTimeoutError (also TimeoutError)
    BadRPC(RemoteExit(…))   RemoteError, `__cause__` being the exception of the function
    BadRPC(reason)          the class that `error_of` finds by the reason

The rule is the layer: BadTCP says that the transport failed, BadRPC is everything above it.
Mistakes of the caller (`CodecError`, `ConfigurationError`) are no outcomes of calls: every door
raises them.

Rules: all of it is immutable or private to its owner, so any thread may use it. Nothing of
genrpc is imported here.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

#: May the function have run? "not_started" is never wrong.
Execution = Literal["not_started", "started", "finished", "unknown"]


@dataclass(frozen=True, slots=True)
class RemoteExit:
    """The function raised, or does not exist: the reason of a BadRPC.

    `type` is the qualified name of the exception's class ("builtins.ZeroDivisionError"),
    `message` its text, `traceback` the formatted remote traceback from the called function
    down ("" where the node does not send it), `exception` the exception itself, or None where
    it could not be decoded here. Two are equal when type and message are.
    """

    type: str
    message: str
    traceback: str = field(default="", compare=False, repr=False)
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def headline(self) -> str:
        """Type and message, in the form of the last line of a traceback."""
        return f"{self.type}: {self.message}" if self.message else self.type

    def __str__(self) -> str:
        """Show the headline and, below it, the remote traceback."""
        if not self.traceback:
            return self.headline
        lines = "\n".join(f"    {line}" for line in self.traceback.rstrip().splitlines())
        return f"{self.headline}\n  Traceback of the other node:\n{lines}"


@dataclass(frozen=True, slots=True)
class BadRPC:
    """A call failed above the transport; `reason` is a word or a RemoteExit.

    `execution` says whether the function may have run. It and `message`, the sentence for a
    person, are not part of equality: `outcome == BadRPC("timeout")` is the way to ask.
    """

    reason: object
    execution: Execution = field(default="unknown", compare=False)
    message: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BadTCP:
    """A call failed in the transport; `reason` is a word. See BadRPC for the rest."""

    reason: str
    execution: Execution = field(default="unknown", compare=False)
    message: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """An outcome that is a value, where outcomes and errors stand side by side."""

    value: T


_SENTENCES = {
    "econnrefused": "Nobody listens at the node's address: start the node, or correct its port.",
    "nxdomain": "The node's host is unknown: correct the name after the @, or set where the node"
    " is with remote_tcp_server_ports or port_discovery.",
    "ehostunreach": "There is no route to the node's host: look at the network between the two.",
    "enetunreach": "The network of the node's host cannot be reached: look at the network.",
    "connect_timeout": "No stream to the node came about within connect_timeout: the host may be"
    " down, a firewall may drop the packets, or the node may be too busy to answer.",
    "closed": "The stream ended before the reply: the node died, stopped or was cut off."
    " Call again where running twice does no harm.",
    "send_timeout": "The request was not accepted within send_timeout: the node or the network"
    " is too slow for what it is sent. Send less at once, or raise send_timeout.",
    "tls": "The TLS handshake failed: both nodes need certificates of the same authority, made for"
    " their names, or neither may use TLS.",
    "corrupt_data": "The other side broke the protocol: it is no genrpc node, or something on the"
    " way changed the data. Look at what listens at that address.",
    "timeout": "No reply came within the call's timeout: allow more time, or find out what keeps"
    " the function.",
    "unauthorized": "The node's policy forbids this function: it is up to the node's"
    " operator, by rpc_module_control and rpc_module_list.",
    "incompatible": "The module is absent on the node or has another version than the one asked"
    " for: install that version there, or ask for the version it has.",
    "invalid_cookie": "The two nodes do not have the same cookie: give both the same cookie or"
    " cookie_file.",
    "badnode": "Another node answers at that address: correct the name or the port.",
    "killed": "The worker process that ran the function died: look for a crash or a lack of memory"
    " on the node.",
    "overload": "The node has too many calls of this caller: call again later, or raise the node's"
    " max_calls.",
    "too_large": "The request or the result is over the size limit: send less at once, or raise"
    " max_message_bytes on both nodes.",
    "draining": "The node is stopping and takes no more calls: the function was not started, so"
    " call another node.",
    "cancelled": "The caller cancelled the call.",
    "expired": "The result was not taken within async_call_inactivity_timeout: take it sooner,"
    " or raise the setting.",
    "bad_arguments": "The node could not decode the arguments: their classes must be importable"
    " there.",
    "bad_result": "The function returned, but its result cannot be carried over: return plain data,"
    " or objects whose class both nodes can import; no generators.",
}


def message_of(value: BadRPC | BadTCP) -> str:
    """Say in a sentence what happened, why, and what to do about it."""
    return value.message or _sentence(value.reason)


def _sentence(reason: object) -> str:
    if isinstance(reason, RemoteExit):
        return reason.headline
    if isinstance(reason, str) and reason in _SENTENCES:
        return _SENTENCES[reason]
    return f"The call failed: {reason!r}."


class CallError(Exception):
    """A call has no result.

    The family:

        CallError
        ├── TransportError (ConnectionError)     BadTCP(…)
        ├── CallTimeoutError (TimeoutError)      "timeout"
        ├── RemoteError                          RemoteExit(…)
        ├── NotAllowedError                      "unauthorized", "invalid_cookie", "badnode"
        ├── IncompatibleError                    "incompatible"
        ├── WorkerKilledError                    "killed"
        ├── OverloadError                        "overload"
        ├── TooLargeError                        "too_large"
        ├── DrainingError                        "draining"
        ├── ExpiredError                         "expired"
        ├── BadArgumentsError                    "bad_arguments"
        └── BadResultError                       "bad_result"

    `message` is the sentence for a person; without one, the sentence that belongs to `reason`.
    """

    reason: object
    execution: Execution
    message: str

    def __init__(
        self, message: str = "", *, reason: object, execution: Execution = "unknown"
    ) -> None:
        self.message = message or _sentence(reason)
        self.reason = reason
        self.execution = execution
        super().__init__(self.message)

    @property
    def value(self) -> BadRPC | BadTCP:
        """What the value door returns in place of this exception."""
        return BadRPC(self.reason, self.execution, self.message)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle all attributes; by default only the message would be given to __init__."""
        arguments = (type(self), self.message, self.reason, self.execution)
        return (_rebuilt, arguments, self.__dict__.copy())


def _rebuilt(
    kind: type[CallError], message: str, reason: object, execution: Execution
) -> CallError:
    """Make the exception of a pickle; a subclass's own `__init__` is left out on purpose."""
    error = kind.__new__(kind)
    # The bases in between (OSError) keep their part of the state in C: they must be initialised.
    CallError.__init__(error, message, reason=reason, execution=execution)
    if isinstance(error, RemoteError):
        error.__cause__ = error.exit.exception
    return error


class TransportError(CallError, ConnectionError):
    """The transport failed; `reason` is "econnrefused", "closed", "tls", …."""

    reason: str

    @property
    def value(self) -> BadTCP:
        """What the value door returns in place of this exception."""
        return BadTCP(self.reason, self.execution, self.message)


class CallTimeoutError(CallError, TimeoutError):
    """No reply within the call's timeout, connecting included."""


class RemoteError(CallError):
    """The function raised, or does not exist.

    `exit` (which is `reason` too) has the type, message and traceback as they were there;
    `__cause__` is the exception itself, where it could be decoded here.
    """

    reason: RemoteExit

    def __init__(
        self, message: str = "", *, reason: RemoteExit, execution: Execution = "unknown"
    ) -> None:
        super().__init__(message, reason=reason, execution=execution)
        self.__cause__ = reason.exception

    @property
    def exit(self) -> RemoteExit:
        """How the function ended."""
        return self.reason

    def __str__(self) -> str:
        """Show type and message of the exception and, below, the remote traceback."""
        return str(self.reason)


class NotAllowedError(CallError):
    """The policy, the cookie or the node's name refused the call."""


class IncompatibleError(CallError):
    """The module is absent there or has another version than the one asked for."""


class WorkerKilledError(CallError):
    """The worker process that ran the function died."""


class OverloadError(CallError):
    """The peer has too many calls."""


class TooLargeError(CallError):
    """The request or the result is over the size limit."""


class DrainingError(CallError):
    """The peer is stopping; the function was not started."""


class ExpiredError(CallError):
    """The result was not taken within async_call_inactivity_timeout."""


class BadArgumentsError(CallError):
    """The peer could not decode the arguments; the function was not started."""


class BadResultError(CallError):
    """The function returned, but its result cannot be encoded or decoded."""


_CLASSES: dict[object, type[CallError]] = {
    "timeout": CallTimeoutError,
    "unauthorized": NotAllowedError,
    "invalid_cookie": NotAllowedError,
    "badnode": NotAllowedError,
    "incompatible": IncompatibleError,
    "killed": WorkerKilledError,
    "overload": OverloadError,
    "too_large": TooLargeError,
    "draining": DrainingError,
    "expired": ExpiredError,
    "bad_arguments": BadArgumentsError,
    "bad_result": BadResultError,
}


def error_of(value: BadRPC | BadTCP) -> BaseException:
    """Make the exception that the raising doors raise for `value`, a new one at each call.

    "cancelled" gives `concurrent.futures.CancelledError`; a reason without a class of its own
    gives a plain `CallError`.
    """
    reason, execution, message = value.reason, value.execution, value.message
    if isinstance(value, BadTCP):
        return TransportError(message, reason=value.reason, execution=execution)
    if isinstance(reason, RemoteExit):
        return RemoteError(message, reason=reason, execution=execution)
    if not isinstance(reason, str):  # may be unhashable
        return CallError(message, reason=reason, execution=execution)
    if reason == "cancelled":
        return CancelledError(message_of(value))
    return _CLASSES.get(reason, CallError)(message, reason=reason, execution=execution)


class Throw(Exception):
    """Ends a function with a value: `call` returns it, `erpc.call` raises this exception."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


class CodecError(Exception):
    """The arguments cannot be encoded; nothing was sent."""


class ConfigurationError(ValueError):
    """A setting is unknown or has a value that is not allowed."""


class UnsafeConfigurationError(ConfigurationError):
    """The configuration would let strangers in: nothing was started."""
