"""What commands print, and the codes with which they end.

    0    result                     75   the node has too many calls, or is stopping
    1    the function raised        78   the configuration is not safe
    2    usage, a wrong setting     124  timeout
    3    another failure (badrpc)   130  Ctrl-C
    4    the transport failed       141  nobody reads the output
    5    unauthorized, or a wrong cookie
    6    some nodes failed

A result is printed as it is when it is text, as JSON where JSON can hold it, else as its repr.
With --json it is {"result": …}, or {"result": its repr, "repr": true} where JSON cannot hold it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

from genrpc.cli.arguments import UsageError
from genrpc.errors import (
    BadRPC,
    BadTCP,
    CallError,
    CodecError,
    ConfigurationError,
    RemoteExit,
    UnsafeConfigurationError,
    message_of,
)

OK = 0
RAISED = 1
CANNOT_SERVE = 1
USAGE = 2
BADRPC = 3
BADTCP = 4
UNAUTHORIZED = 5
SOME_FAILED = 6
TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h
UNSAFE = 78  # EX_CONFIG of sysexits.h
TIMEOUT = 124  # as timeout(1)
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
NOBODY_READS = 141  # 128 + SIGPIPE

_CODES = {
    "unauthorized": UNAUTHORIZED,
    "invalid_cookie": UNAUTHORIZED,
    "timeout": TIMEOUT,
    "overload": TRY_LATER,
    "draining": TRY_LATER,
    "cancelled": INTERRUPTED,
}

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


# ---------------------------------------------------------------- ends of commands


@contextlib.contextmanager
def prepared(args: Namespace) -> Iterator[None]:
    """Set logging and the streams up; flush what was printed at the end."""
    level = _LEVELS[min(args.verbose, len(_LEVELS) - 1)]
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's own stream has none
            reconfigure(errors="backslashreplace")
    yield
    sys.stdout.flush()


def guarded(run: Callable[[Namespace], int], args: Namespace) -> int:
    """Run a command; its failures become sentences and exit codes."""
    try:
        return run(args)
    except (CallError, CancelledError) as exc:
        return show_failure(value_of(exc), as_json=args.json)
    except UsageError as exc:
        return usage(str(exc))
    except UnsafeConfigurationError as exc:
        say(str(exc))
        return UNSAFE
    except (ConfigurationError, CodecError) as exc:
        say(str(exc))
        return USAGE


def usage(message: str, line: str = "") -> int:
    """Tell of a mistake in usage; gives the exit code."""
    say(message)
    if line:
        print(line, file=sys.stderr)
    return USAGE


def say(message: str) -> None:
    """Tell the user something that is no result."""
    print(f"genrpc: {message}", file=sys.stderr, flush=True)


def give_up_stdout() -> None:
    """Nobody reads standard output any more: let the interpreter's last flush find no pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


# ---------------------------------------------------------------- results and failures


def print_json(value: object) -> None:
    """Print one JSON document in one line."""
    print(json.dumps(value, allow_nan=False), flush=True)


def text_of(value: object) -> str:
    """A result for people: text as it is, JSON where JSON can hold it, else the repr."""
    if isinstance(value, str):
        return str(value)
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def json_of(value: object) -> dict[str, Any]:
    """A result for programs; see the module's docstring."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return {"result": repr(value), "repr": True}
    return {"result": value}


def value_of(error: BaseException) -> BadRPC | BadTCP:
    """The value that says what an exception says."""
    return error.value if isinstance(error, CallError) else BadRPC("cancelled")


def code_of(value: BadRPC | BadTCP) -> int:
    """The exit code of a failure."""
    if isinstance(value, BadTCP):
        return BADTCP
    if isinstance(value.reason, RemoteExit):
        return RAISED
    return _CODES.get(str(value.reason), BADRPC)


def error_json(value: BadRPC | BadTCP) -> dict[str, Any]:
    """A failure for programs."""
    error: dict[str, Any] = {
        "kind": "badtcp" if isinstance(value, BadTCP) else "badrpc",
        "reason": "exit" if isinstance(value.reason, RemoteExit) else str(value.reason),
        "message": message_of(value),
        "execution": value.execution,
    }
    if isinstance(value.reason, RemoteExit):
        error["exception"] = {
            "type": value.reason.type,
            "message": value.reason.message,
            "traceback": value.reason.traceback,
        }
    return {"error": error}


def show_result(value: object, *, as_json: bool) -> int:
    """Print a result; gives the exit code."""
    if as_json:
        print_json(json_of(value))
    else:
        print(text_of(value), flush=True)
    return OK


def show_failure(value: BadRPC | BadTCP, *, as_json: bool) -> int:
    """Print a failure; gives the exit code."""
    if as_json:
        print_json(error_json(value))
    elif isinstance(value.reason, RemoteExit):
        say(f"the function failed: {value.reason}")
    else:
        say(message_of(value))
    return code_of(value)
