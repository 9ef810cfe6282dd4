"""What commands print: results, failures and words to the user; failures become exit codes.

A result is printed as it is when it is text, as JSON where JSON can hold it, else as its repr.
With --json it is {"result": …}, or {"result": its repr, "repr": true} where JSON cannot hold it;
a failure is {"error": {…}}, on standard output too.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, TextIO

from genrpc.cli import codes
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

_CODES = {
    "unauthorized": codes.UNAUTHORIZED,
    "invalid_cookie": codes.UNAUTHORIZED,
    "timeout": codes.TIMEOUT,
    "overload": codes.TRY_LATER,
    "draining": codes.TRY_LATER,
    "cancelled": codes.INTERRUPTED,
}

_NOT_JSON = (TypeError, ValueError, RecursionError)
"""What json.dumps raises for what it cannot write."""


# ---------------------------------------------------------------- ends of commands


def prepare(args: Namespace) -> None:
    """Set up logging, and streams that can print any text."""
    import logging

    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[min(args.verbose, len(levels) - 1)],
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's own stream has none
            reconfigure(errors="backslashreplace")


def guarded(run: Callable[[Namespace], int], args: Namespace) -> int:
    """Run a command; its failures become sentences and exit codes."""
    try:
        return run(args)
    except (CallError, CancelledError) as exc:
        return show_failure(value_of(exc), getattr(args, "node", ""), as_json=args.json)
    except UsageError as exc:
        return usage(str(exc))
    except UnsafeConfigurationError as exc:
        say(str(exc))
        return codes.UNSAFE
    except (ConfigurationError, CodecError) as exc:
        say(str(exc))
        return codes.USAGE


def usage(message: str, line: str = "") -> int:
    """Tell of a mistake in usage; gives the exit code."""
    say(message)
    if line:
        print(line, file=sys.stderr)
    return codes.USAGE


def say(message: str) -> None:
    """Tell the user something that is no result."""
    print(f"genrpc: {message}", file=sys.stderr, flush=True)


def give_up_stdout() -> None:
    """Nobody reads standard output any more: let the interpreter's last flush find no pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def is_terminal(stream: TextIO) -> bool:
    """Whether this is a terminal on which lines may be redrawn, in colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def has_rich() -> bool:
    """Whether the extra `cli` is installed."""
    import importlib.util

    return importlib.util.find_spec("rich") is not None


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
    except _NOT_JSON:
        return repr(value)


def json_of(value: object) -> dict[str, Any]:
    """A result for programs; see the module's docstring."""
    try:
        json.dumps(value, allow_nan=False)
    except _NOT_JSON:
        return {"result": repr(value), "repr": True}
    return {"result": value}


def value_of(error: BaseException) -> BadRPC | BadTCP:
    """The value that says what an exception says."""
    return error.value if isinstance(error, CallError) else BadRPC("cancelled")


def code_of(value: BadRPC | BadTCP) -> int:
    """The exit code of a failure."""
    if isinstance(value, BadTCP):
        return codes.BADTCP
    if isinstance(value.reason, RemoteExit):
        return codes.RAISED
    return _CODES.get(str(value.reason), codes.BADRPC)


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


def headline_of(value: BadRPC | BadTCP) -> str:
    """A failure in one line."""
    if isinstance(value.reason, RemoteExit):
        return value.reason.headline
    return f"{value.reason}: {message_of(value)}"


def show_result(value: object, *, as_json: bool) -> int:
    """Print a result; gives the exit code."""
    if as_json:
        print_json(json_of(value))
    else:
        print(text_of(value), flush=True)
    return codes.OK


def show_failure(value: BadRPC | BadTCP, node: str, *, as_json: bool) -> int:
    """Print a failure of a call to `node`; gives the exit code."""
    if as_json:
        print_json(error_json(value))
    elif isinstance(value.reason, RemoteExit) and "\n" in value.reason.traceback.strip():
        say(f"{node}: {value.reason}")  # with the traceback, which has more than the headline
    else:
        say(f"{node}: {headline_of(value)}")
    return code_of(value)
