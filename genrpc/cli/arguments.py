"""What commands take: options anywhere among the arguments, durations, nodes, targets, values.

argparse does the parsing, with three changes: options may stand between arguments; a word such as
-4 or -1e5 is an argument, not an option; mistakes raise `UsageError` with a sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from genrpc.names import check_target, parse_destination, parse_duration

STDIN = "-"


class UsageError(Exception):
    """The command line is wrong; the text says how."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `declare` adds its arguments to a parser, `run` does it and gives the code."""

    declare: Callable[[Parser], object]
    run: Callable[[argparse.Namespace], int]
    details: str = ""
    """Shown below the options in the help; examples above all."""


class Parser(argparse.ArgumentParser):
    """The parser of one command, with the options that all have."""

    def __init__(self, name: str, summary: str, command: Command) -> None:
        super().__init__(
            prog=f"genrpc {name}",
            description=summary[0].upper() + summary[1:] + ".",
            epilog=command.details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._takes_value: dict[str, bool] = {"-h": False, "--help": False}
        command.declare(self)
        self.add_argument("--json", action="store_true", help="print JSON, for programs")
        self.add_argument(
            "-v", "--verbose", action="count", default=0, help="tell more; -vv tells all"
        )

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # noqa: ANN401  # as argparse's
        """As argparse does; also remember which options take a value."""
        action = super().add_argument(*names, **options)
        for option in action.option_strings:
            # __init__ of argparse adds --help before there is anything to remember it in.
            if "_takes_value" in self.__dict__:
                self._takes_value[option] = action.nargs != 0
        return action

    def add_timeout(self, default: str, meaning: str) -> None:
        """Add --timeout; `default` says in words what holds without it."""
        self.add_argument(
            "--timeout",
            metavar="DURATION",
            type=duration,
            default=argparse.SUPPRESS,
            help=f"{meaning}: 5, 500ms, 10m, none (default: {default})",
        )

    @property
    def usage_line(self) -> str:
        """The usage, in one line or few."""
        return self.format_usage().rstrip()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command's name; raises UsageError."""
        return self.parse_args(self._arranged(list(words)))

    def _arranged(self, words: list[str]) -> list[str]:
        """Options first, then `--`, then arguments: in this order argparse takes everything."""
        options: list[str] = []
        arguments: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                arguments += words
                break
            if not word.startswith("-") or word == STDIN or _is_json(word):
                arguments.append(word)
            elif self._takes_value.get(word) and words:
                # In one word where argparse allows it, so that a value may begin with a dash.
                value = words.pop(0)
                options += [f"{word}={value}"] if word.startswith("--") else [word, value]
            else:
                options.append(word)
        return [*options, "--", *arguments] if arguments else options

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse would print and exit."""
        # The `--` is of `_arranged`.
        raise UsageError(message.replace("arguments: -- ", "arguments: "))


def duration(text: str) -> float | None:
    """A duration, for argparse."""
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def positive_duration(text: str) -> float:
    """A duration above 0 that ends, for argparse."""
    seconds = duration(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r}: a duration above 0 that ends is wanted")
    return seconds


def node(text: str) -> str:
    """A destination, for argparse."""
    try:
        parse_destination(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def nodes(text: str) -> list[str]:
    """Destinations with commas between, for argparse."""
    found = [node(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("nodes with commas between are wanted, a@host,b@host")
    return found


def target(text: str) -> tuple[str, str]:
    """Module and function of "module.function" or "module:Class.method", for argparse."""
    module, colon, function = text.partition(":")
    if not colon:
        module, _, function = text.rpartition(".")
    try:
        if not module or not function:
            raise ValueError(f"{text!r} names no function: module.function is wanted, math.sqrt")
        check_target(module, function)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return module, function


def values(args: Sequence[str], keywords: Sequence[str]) -> tuple[list[object], dict[str, object]]:
    """The arguments of a call from ARGS and from --kw; reads standard input for `-`.

    Raises UsageError.
    """
    stdin = _Stdin()
    named: dict[str, object] = {}
    positional = [stdin.value(text) for text in args]
    for text in keywords:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--kw {text!r}: name=value is wanted")
        if name in named:
            raise UsageError(f"--kw {name} is given twice")
        named[name] = stdin.value(value)
    return positional, named


class _Stdin:
    """Makes values of words; one of them may be what standard input has."""

    def __init__(self) -> None:
        self._is_read = False

    def value(self, text: str) -> object:
        if text != STDIN:
            return _value(text)
        if self._is_read:
            raise UsageError("`-` stands for standard input, which can be one argument only")
        self._is_read = True
        try:
            found = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise UsageError("standard input is not UTF-8 text") from None
        # As $(…) of shells: the line end that echo and editors add is not meant.
        return _value(found.removesuffix("\n"))


def _value(text: str) -> object:
    """JSON if it parses, else the text."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is Python's JSON only")


def _is_json(word: str) -> bool:
    return _value(word) is not word
