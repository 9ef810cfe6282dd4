"""Plain values to JSON, MessagePack and CBOR documents, and back.

The last two are done by the packages `msgpack` and `cbor2`, imported at their first use. A reader's
results are not trusted: `forms.checked` lets only plain values through. Any thread may call this.
"""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from typing import Any, NoReturn

from genrpc.errors import CodecError
from genrpc.neutral.forms import checked


@lru_cache(maxsize=8)
def is_installed(package: str) -> bool:
    """Whether a package can be imported; looked up once."""
    return importlib.util.find_spec(package) is not None


# ---------------------------------------------------------------- JSON (RFC 8259)


def write_json(value: Any) -> bytes:  # noqa: ANN401
    """Write a plain value that was checked."""
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    return text.encode()


def read_json(data: bytes | bytearray, max_depth: int) -> Any:  # noqa: ANN401
    """Read one document in UTF-8; raises CodecError."""
    try:
        value = json.loads(
            bytes(data).decode(), parse_constant=_no_constant, object_pairs_hook=_distinct
        )
    except UnicodeDecodeError:
        raise CodecError("it is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise CodecError(f"it is no JSON: {error}") from None
    except ValueError:  # more digits in a number than Python is set to read
        raise CodecError("a number has too many digits") from None
    except RecursionError:
        raise CodecError("the values are nested too deep") from None
    return checked(value, max_depth, finite=True)


def _no_constant(name: str) -> NoReturn:
    raise CodecError(f"{name} is no JSON")


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        made = dict(pairs)
    except TypeError:
        raise CodecError("a key is an array or a map") from None
    if len(made) != len(pairs):
        raise CodecError("an object or map has two equal keys")
    return made


# ---------------------------------------------------------------- MessagePack


def write_msgpack(value: Any) -> bytes:  # noqa: ANN401
    """Write a plain value that was checked."""
    import msgpack

    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def read_msgpack(data: bytes | bytearray, max_depth: int) -> Any:  # noqa: ANN401
    """Read one document; raises CodecError."""
    import msgpack

    try:
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_distinct, timestamp=0
        )
    except CodecError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        # ValueError is the parent of what msgpack raises for bytes that are none of its.
        raise CodecError("it is no MessagePack, or is nested too deep") from None
    return checked(value, max_depth)


# ---------------------------------------------------------------- CBOR (RFC 8949)


def write_cbor(value: Any) -> bytes:  # noqa: ANN401
    """Write a plain value that was checked."""
    import cbor2

    return cbor2.dumps(value)


def read_cbor(data: bytes | bytearray, max_depth: int) -> Any:  # noqa: ANN401
    """Read one document; raises CodecError."""
    import cbor2

    data = bytes(data)
    try:
        value = cbor2.loads(data)
        length, items = _extent(data)
    except Exception:  # tags have readers of their own in there, which raise what they like
        raise CodecError("it is no CBOR, or is nested too deep") from None
    if length != len(data):
        raise CodecError("something follows the document")
    return checked(value, max_depth, items=items)


_STRINGS, _ARRAY, _MAP, _TAG = (2, 3), 4, 5, 6
_INDEFINITE, _BREAK = 31, 0xFF


def _extent(data: bytes) -> tuple[int, int]:
    """Tell where the first document ends, and how many items its arrays and maps have in all.

    A key is one, and so is its value. cbor2 says neither: it passes over what follows, and of
    equal keys it keeps the last. It must have read the data; others may raise anything here.
    """
    position, items = 0, 0
    outer: list[tuple[int, int]] = []
    left, counts = 1, 0  # items to come in this one (below 0: until a break), what each counts
    while left or outer:
        if not left:
            left, counts = outer.pop()
            continue
        head = data[position]
        position += 1
        if head == _BREAK:
            left = 0
            continue
        left -= 1
        items += counts
        major, number = head >> 5, head & 31
        if number == _INDEFINITE:
            outer.append((left, counts))
            left, counts = -1, int(major not in _STRINGS)
            continue
        if number > 23:  # the number, or a float, follows
            size = 1 << (number - 24)
            number = int.from_bytes(data[position : position + size], "big")
            position += size
        if major in _STRINGS:
            position += number
        elif major in (_ARRAY, _MAP):
            outer.append((left, counts))
            left, counts = number * (2 if major == _MAP else 1), 0
            items += left
        elif major == _TAG:
            outer.append((left, counts))
            left, counts = 1, 0
    return position, items
