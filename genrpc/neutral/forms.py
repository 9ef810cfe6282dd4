"""The neutral forms of Python values: what is left of them for encodings that know no Python.

`plain` makes of any value one of None, bool, int, float, str, Atom, bytes, list, tuple, set and
dict, of exactly these types and new through and through; encoders then need to know no other, and
what the function goes on to change does not matter. `check` tells whether such a value keeps to
the rules of an encoding. It runs users' code and may be called on any thread that may.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import os
import pathlib
import sys
import threading
import uuid
from collections.abc import Iterable
from typing import Any, Literal

from genrpc.errors import CodecError

MAX_EXACT = 2**53
"""The largest whole number up to which a binary64 holds every one (RFC 7493, section 2.2)."""

MAX_INT_DIGITS = 20_000
"""Turning more digits into an int, or back, would hold the interpreter for too long."""

MAX_MESSAGES = 96
"""Messages in one another, below the value: readers of protobuf take 100, and some are ours."""


class Atom(str):
    """An Erlang-style atom; everywhere but in a Term it is its text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


# Where users find it, and under which name other nodes have it in pickles.
Atom.__module__ = "genrpc"


class UnfitError(CodecError):
    """The value has no place in the encoding; the text is a part of a sentence that says why."""


class OversizeError(CodecError):
    """The encoded value would be over the limit."""


# ---------------------------------------------------------------- to plain values


def plain(value: object, *, max_depth: int, max_bytes: int) -> Any:  # noqa: ANN401
    """Give the neutral form; raises UnfitError or OversizeError.

    `max_bytes` is compared with a lower bound of the encoded size, so that a value that is far
    too large is not even built.
    """
    try:
        return _Plain(max_depth, max_bytes).of(value, 0)
    except CodecError:
        raise
    except BaseException as error:  # of a field's or a class's own code; it may raise anything
        if (
            isinstance(error, KeyboardInterrupt)
            and threading.current_thread() is threading.main_thread()
        ):
            raise
        raise UnfitError(f"a value that failed when it was read ({type(error).__name__})") from None


_TEXTS = (decimal.Decimal, uuid.UUID)
_TIMES = (datetime.date, datetime.time)  # a datetime is a date


class _Plain:
    """One conversion, with what is left of its bytes."""

    def __init__(self, max_depth: int, max_bytes: int) -> None:
        self._max_depth = max_depth
        self._left = max_bytes

    def of(self, value: object, depth: int) -> Any:  # noqa: ANN401
        """Give the form of a value that stands in `depth` containers."""
        kind = type(value)
        if value is None or kind is bool or kind is float:
            self._charge(1)
            return value
        if kind is str:
            return self._text(value)
        if kind is int:
            return self._int(value)
        if isinstance(value, enum.Enum):
            return self.of(value.value, depth)
        if isinstance(value, str):
            text = self._text(str.__str__(value))
            return Atom(text) if isinstance(value, Atom) else text
        if isinstance(value, int):
            return self._int(int.__int__(value))
        if isinstance(value, float):
            self._charge(1)
            return float.__float__(value)
        if isinstance(value, bytes | bytearray | memoryview):
            data = value.tobytes() if isinstance(value, memoryview) else bytes(value)
            self._charge(1 + len(data))
            return data
        if isinstance(value, list | tuple | set | frozenset | dict):
            return self._container(value, depth)
        return self._other(value, depth)

    def _container(self, value: Any, depth: int) -> object:  # noqa: ANN401
        self._charge(1)
        inner = self._inner(depth)
        if isinstance(value, dict):
            return self._dict(value.items(), inner)
        if isinstance(value, set | frozenset):
            return self._distinct([self._key(item, inner) for item in value])
        if isinstance(value, tuple):
            return tuple([self.of(item, inner) for item in value])
        return [self.of(item, inner) for item in value]

    def _dict(self, items: Iterable[tuple[object, object]], inner: int) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        count = 0
        for key, item in items:
            made[self._key(key, inner)] = self.of(item, inner)
            count += 1
        if len(made) != count:
            raise UnfitError("a dict of which several keys have the same neutral form")
        return made

    def _distinct(self, items: list[Any]) -> set[Any]:
        made = set(items)
        if len(made) != len(items):
            raise UnfitError("a set of which several items have the same neutral form")
        return made

    def _key(self, value: object, depth: int) -> Any:  # noqa: ANN401
        """Give the form of a key of a dict or an item of a set, which is hashable."""
        if isinstance(value, frozenset):
            self._charge(1)
            inner = self._inner(depth)
            return frozenset(self._distinct([self._key(item, inner) for item in value]))
        if isinstance(value, enum.Enum):
            return self._key(value.value, depth)
        if isinstance(value, tuple):
            self._charge(1)
            inner = self._inner(depth)
            return tuple([self._key(item, inner) for item in value])
        made = self.of(value, depth)
        if isinstance(made, list | set | dict):
            raise UnfitError(f"a key of type {_name(value)}")
        return made

    def _other(self, value: object, depth: int) -> Any:  # noqa: ANN401
        if isinstance(value, _TEXTS):
            return self._text(str(value))
        if isinstance(value, _TIMES):
            return self._text(value.isoformat())
        if isinstance(value, datetime.timedelta):
            self._charge(1)
            return value.total_seconds()
        if isinstance(value, pathlib.PurePath):
            return self._text(os.fspath(value))
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
            return self._numpy(value, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._charge(1)
            inner = self._inner(depth)
            fields = dataclasses.fields(value)
            return self._dict(((each.name, getattr(value, each.name)) for each in fields), inner)
        raise UnfitError(f"a value of type {_name(value)}")

    def _numpy(self, value: Any, depth: int) -> object:  # noqa: ANN401
        # "biufSU" without long double: what numpy itself turns into Python's own without loss.
        if value.dtype.kind not in "biufSU" or value.dtype.char == "g":
            raise UnfitError(f"a numpy value of dtype {value.dtype}")
        self._charge(value.size)
        return self.of(value.tolist(), depth)

    def _int(self, value: Any) -> int:  # noqa: ANN401
        self._charge(1 + value.bit_length() // 8)
        made: int = value
        return made

    def _text(self, text: Any) -> str:  # noqa: ANN401
        size = len(text)
        if not text.isascii():
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                raise UnfitError("a text with a lone surrogate, which is no Unicode") from None
        self._charge(1 + size)
        made: str = text
        return made

    def _inner(self, depth: int) -> int:
        if depth >= self._max_depth:
            raise UnfitError(f"containers nested more than max_depth ({self._max_depth}) deep")
        return depth + 1

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise OversizeError("The result is over the size limit.")


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


# ---------------------------------------------------------------- what an encoding takes


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What an encoding takes of plain values."""

    ints: tuple[int, int] | None = None
    """The smallest and largest int; None: all."""
    finite: bool = False
    """Whether floats must be finite."""
    binary: bool = True
    """Whether it has bytes."""
    sets: bool = True
    keys: Literal["text", "scalar", "any"] = "any"
    messages: int | None = None
    """How many messages may be in one another; None: it has none."""


_SCALARS = (type(None), bool, int, float, str, bytes)


def check(value: Any, rules: Rules, messages: int = 0) -> None:  # noqa: ANN401
    """Raise UnfitError, with a part of a sentence, if a plain value breaks the rules."""
    if rules.messages is not None and messages > rules.messages:
        raise UnfitError("containers nested deeper than readers of protobuf take")
    if value is None or isinstance(value, bool | str):
        return
    if isinstance(value, int):
        if rules.ints is not None and not rules.ints[0] <= value <= rules.ints[1]:
            limit = "2**53" if rules.ints[1] == MAX_EXACT else "64 bits"
            raise UnfitError(f"an int beyond {limit}")
        if rules.ints is None and value.bit_length() > _MAX_INT_BITS:
            raise UnfitError(f"an int of more than {MAX_INT_DIGITS:,} digits")
    elif isinstance(value, float):
        if rules.finite and not math.isfinite(value):
            raise UnfitError(f"the float {value}")
    elif isinstance(value, bytes):
        if not rules.binary:
            raise UnfitError("bytes")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_key(key, rules, messages + 3)
            check(item, rules, messages + 3)
    elif isinstance(value, set | frozenset) and not rules.sets:
        raise UnfitError("a set")
    else:
        for item in value:
            check(item, rules, messages + 2)


_MAX_INT_BITS = math.floor(MAX_INT_DIGITS * math.log2(10))


def _check_key(key: object, rules: Rules, messages: int) -> None:
    if rules.keys == "text" and not isinstance(key, str):
        raise UnfitError(f"a dict with a key of type {type(key).__name__}")
    if rules.keys == "scalar" and not isinstance(key, _SCALARS):
        raise UnfitError(f"a dict with a key of type {type(key).__name__}")
    check(key, rules, messages)


# ---------------------------------------------------------------- large numbers as text

# Python's own conversion takes quadratic time, and refuses more digits than a program-wide
# setting says, of which 640 is the least.
_CHUNK = 512


def digits_of(value: int) -> str:
    """Give the decimal digits of an int; at most MAX_INT_DIGITS."""
    if value < 0:
        return f"-{digits_of(-value)}"
    width = math.ceil(value.bit_length() * math.log10(2)) + 1
    if width <= _CHUNK:
        return str(value)
    return _digits(value, width).lstrip("0")


def _digits(value: int, width: int) -> str:
    if width <= _CHUNK:
        return str(value).zfill(width)
    low = width // 2
    upper, lower = divmod(value, 10**low)
    return _digits(upper, width - low) + _digits(lower, low)


def int_of(digits: str) -> int:
    """Read an int from its decimal digits; raises CodecError."""
    negative = digits.startswith("-")
    body = digits[1:] if negative else digits
    if not (body.isascii() and body.isdigit()) or len(body) > MAX_INT_DIGITS:
        raise CodecError(
            f"a big_int_value has decimal digits, {MAX_INT_DIGITS:,} at most, after an optional"
            " minus sign"
        )
    return -_int(body) if negative else _int(body)


def _int(digits: str) -> int:
    if len(digits) <= _CHUNK:
        return int(digits)
    low = len(digits) // 2
    power: int = 10**low
    return _int(digits[:-low]) * power + _int(digits[-low:])


# ---------------------------------------------------------------- what readers gave


def checked(
    value: Any,  # noqa: ANN401
    max_depth: int,
    *,
    finite: bool = False,
    items: int | None = None,
) -> Any:  # noqa: ANN401
    """Let through only plain values, which a reader of JSON, MessagePack or CBOR gave.

    Raises CodecError for others (dates, extension types, tagged values), for too deep a nesting,
    and for one container that stands in two places, of which one could make something huge.
    `items` is how many all containers had in the document, where the reader drops equal ones.
    """
    checking = _Checking(max_depth, finite)
    checking.look(value, 0)
    if items is not None and checking.items != items:
        raise CodecError("a map has two equal keys, or a set two equal items")
    return value


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON has escapes for such
        raise CodecError("a text has a lone surrogate, which is no Unicode") from None


class _Checking:
    def __init__(self, max_depth: int, finite: bool) -> None:
        self._max_depth = max_depth
        self._finite = finite
        self._seen: set[int] = set()
        self.items = 0

    def look(self, value: Any, depth: int) -> None:  # noqa: ANN401
        kind = type(value)
        if kind is float:
            if self._finite and not math.isfinite(value):
                raise CodecError("a number is too large for a float")
        elif kind is str:
            if not value.isascii():
                _check_unicode(value)
        elif kind is dict:
            self._enter(value, depth)
            self.items += 2 * len(value)
            for key, item in value.items():
                self.look(key, depth + 1)
                self.look(item, depth + 1)
        elif kind in (list, tuple, set, frozenset):
            self._enter(value, depth)
            self.items += len(value)
            for item in value:
                self.look(item, depth + 1)
        elif kind not in _SCALARS:
            raise CodecError(f"a value of type {_name(value)} has no place in a payload")

    def _enter(self, value: Any, depth: int) -> None:  # noqa: ANN401
        if depth >= self._max_depth:
            raise CodecError(f"the values are nested more than max_depth ({self._max_depth}) deep")
        if value and id(value) in self._seen:  # an empty tuple is the same one everywhere
            raise CodecError("one container stands in several places")
        self._seen.add(id(value))
