"""Plain values to the messages `Term` and `google.protobuf.Value`, and back.

See `genrpc.neutral` for what becomes what. A message that was decoded is not deeper than
protobuf's own limit; `max_depth` counts containers on top of it. Any thread may call this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import struct_pb2

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import CodecError
from genrpc.neutral.forms import MAX_EXACT, Atom, digits_of, int_of

_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1


# ---------------------------------------------------------------- terms


def fill_term(term: pb.Term, value: Any) -> None:  # noqa: ANN401
    """Put a plain value that was checked into an empty Term."""
    if value is None:
        return
    if isinstance(value, bool):
        term.bool_value = value
    elif isinstance(value, int):
        if _MIN_INT <= value <= _MAX_INT:
            term.int_value = value
        else:
            term.big_int_value = digits_of(value)
    elif isinstance(value, float):
        term.float_value = value
    elif isinstance(value, Atom):
        term.atom_value = value
    elif isinstance(value, str):
        term.string_value = value
    elif isinstance(value, bytes):
        term.bytes_value = value
    elif isinstance(value, dict):
        term.map_value.SetInParent()
        for key, item in value.items():
            entry = term.map_value.entries.add()
            fill_term(entry.key, key)
            fill_term(entry.value, item)
            entry.key.SetInParent()
            entry.value.SetInParent()
    elif isinstance(value, list):
        _fill_list(term.list_value, value)
    elif isinstance(value, tuple):
        _fill_list(term.tuple_value, value)
    else:
        _fill_list(term.set_value, value)


def _fill_list(terms: pb.TermList, items: Iterable[object]) -> None:
    terms.SetInParent()
    for item in items:
        fill_term(terms.items.add(), item)


def value_of_term(term: pb.Term, max_depth: int) -> Any:  # noqa: ANN401
    """Give the value of a term; raises CodecError."""
    return _from_term(term, max_depth, False)


def _from_term(term: pb.Term, room: int, as_key: bool) -> Any:  # noqa: ANN401
    kind = term.WhichOneof("kind")
    if kind is None:
        return None
    value = getattr(term, kind)
    if kind == "big_int_value":
        return int_of(value)
    if kind == "atom_value":
        return Atom(value)
    if kind not in ("list_value", "tuple_value", "set_value", "map_value"):
        return value
    if not room:
        raise CodecError("the terms are nested more than max_depth deep")
    if as_key and kind in ("list_value", "map_value"):
        raise CodecError("a list or a map cannot be a key of a map or an item of a set")
    if kind == "map_value":
        return _from_map(value, room - 1)
    if kind == "set_value":
        items = [_from_term(item, room - 1, True) for item in value.items]
        made = set(items)
        if len(made) != len(items):
            raise CodecError("a set has two equal items")
        return frozenset(made) if as_key else made
    items = [_from_term(item, room - 1, as_key) for item in value.items]
    return items if kind == "list_value" else tuple(items)


def _from_map(terms: pb.TermMap, room: int) -> dict[Any, Any]:
    made = {}
    for entry in terms.entries:
        made[_from_term(entry.key, room, True)] = _from_term(entry.value, room, False)
    if len(made) != len(terms.entries):
        raise CodecError("a map has two equal keys")
    return made


# ---------------------------------------------------------------- JSON-like values


def fill_value(message: struct_pb2.Value, value: Any) -> None:  # noqa: ANN401
    """Put a plain value that was checked into an empty Value."""
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        for key, item in value.items():
            fill_value(message.struct_value.fields[key], item)
    else:
        message.list_value.SetInParent()
        for item in value:
            fill_value(message.list_value.values.add(), item)


def value_of_message(message: struct_pb2.Value, max_depth: int) -> Any:  # noqa: ANN401
    """Give the value of a google.protobuf.Value; raises CodecError."""
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        return _number(message.number_value)
    if kind == "string_value":
        return message.string_value
    if kind == "bool_value":
        return message.bool_value
    if kind == "null_value":
        return None
    if kind == "list_value":
        return list_of(message.list_value, max_depth)
    if kind == "struct_value":
        return dict_of(message.struct_value, max_depth)
    raise CodecError("a google.protobuf.Value has none of its kinds set")


def list_of(message: struct_pb2.ListValue, max_depth: int) -> list[Any]:
    """Give the items of a ListValue; raises CodecError."""
    if max_depth <= 0:
        raise CodecError("the values are nested more than max_depth deep")
    return [value_of_message(item, max_depth - 1) for item in message.values]


def dict_of(message: struct_pb2.Struct, max_depth: int) -> dict[str, Any]:
    """Give the fields of a Struct; raises CodecError."""
    if max_depth <= 0:
        raise CodecError("the values are nested more than max_depth deep")
    fields: Mapping[str, struct_pb2.Value] = message.fields
    return {key: value_of_message(item, max_depth - 1) for key, item in fields.items()}


def _number(number: float) -> int | float:
    """Give a whole number as an int, where a binary64 holds every int; -0.0 has no int."""
    if -MAX_EXACT <= number <= MAX_EXACT and number.is_integer():
        if number == 0 and math.copysign(1.0, number) < 0:
            return number
        return int(number)
    return number
