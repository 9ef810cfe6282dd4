"""Arguments and values in each neutral encoding, by its number.

The numbers are those of `PayloadEncoding`, and VALUES, which is not on the stream: the arguments
of the unary methods as a serialized ListValue, with a serialized Struct of keyword arguments as
the first buffer. See `genrpc.neutral` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import CodecError
from genrpc.neutral import documents, messages
from genrpc.neutral.forms import (
    MAX_EXACT,
    MAX_MESSAGES,
    OversizeError,
    Rules,
    UnfitError,
    check,
    plain,
)

Buffer = bytes | bytearray | memoryview
Arguments = tuple[tuple[object, ...], dict[str, object]]

TERMS: int = pb.PAYLOAD_ENCODING_TERMS
JSON: int = pb.PAYLOAD_ENCODING_JSON
MSGPACK: int = pb.PAYLOAD_ENCODING_MSGPACK
CBOR: int = pb.PAYLOAD_ENCODING_CBOR
VALUES: int = -1
"""No number of the wire, where it is refused."""

CONTENT_TYPES: Mapping[int, str] = {
    JSON: "application/json",
    MSGPACK: "application/msgpack",
    CBOR: "application/cbor",
}


@dataclass(frozen=True, slots=True)
class _Encoding:
    name: str
    """As a ReplyEncoding without its prefix, in lower case."""
    rules: Rules
    write: Callable[[Any], bytes]
    read: Callable[[bytes, Sequence[Buffer], int], Arguments]
    package: str = ""
    """What does it, if it is an extra."""


# ---------------------------------------------------------------- reading and writing


def _write_term(value: object) -> bytes:
    term = pb.Term()
    messages.fill_term(term, value)
    return term.SerializeToString()


def _write_value(value: object) -> bytes:
    message = struct_pb2.Value()
    messages.fill_value(message, value)
    return message.SerializeToString()


def _read_terms(head: bytes, buffers: Sequence[Buffer], max_depth: int) -> Arguments:
    terms = _parsed(pb.Terms, head)
    return (
        tuple([messages.value_of_term(term, max_depth) for term in terms.args]),
        {name: messages.value_of_term(term, max_depth) for name, term in terms.kwargs.items()},
    )


def _read_values(head: bytes, buffers: Sequence[Buffer], max_depth: int) -> Arguments:
    args = messages.list_of(_parsed(struct_pb2.ListValue, head), max_depth + 1)
    if not buffers:
        return tuple(args), {}
    return tuple(args), messages.dict_of(_parsed(struct_pb2.Struct, buffers[0]), max_depth + 1)


def _parsed(message: Any, data: Buffer) -> Any:  # noqa: ANN401  # a class of messages; its message
    try:
        return message.FromString(bytes(data))
    except DecodeError:
        name = message.DESCRIPTOR.full_name
        raise CodecError(f"it is no {name}, or is nested deeper than protobuf takes") from None


def _pairs(
    read: Callable[[bytes, int], object],
) -> Callable[[bytes, Sequence[Buffer], int], Arguments]:
    """Make of a reader of documents one of [args, kwargs]."""

    def read_pair(head: bytes, buffers: Sequence[Buffer], max_depth: int) -> Arguments:
        return _halves(read(head, max_depth + 2))  # the pair and its halves are ours

    return read_pair


def _halves(pair: object) -> Arguments:
    if isinstance(pair, list) and len(pair) == 2:
        args, kwargs = pair
        if (
            isinstance(args, list)
            and isinstance(kwargs, dict)
            and all(isinstance(name, str) for name in kwargs)
        ):
            return tuple(args), kwargs
    raise CodecError(
        "it is not [args, kwargs], a list of the positional arguments and a map of the keyword"
        " arguments, whose keys are text"
    )


# ---------------------------------------------------------------- the table

_JSON_LIKE = {"ints": (-MAX_EXACT, MAX_EXACT), "finite": True, "binary": False, "sets": False}
_INTS_64 = (-(2**63), 2**64 - 1)

# In the order in which they are recommended.
_ENCODINGS: dict[int, _Encoding] = {
    TERMS: _Encoding("term", Rules(messages=MAX_MESSAGES), _write_term, _read_terms),
    MSGPACK: _Encoding(
        "msgpack",
        Rules(ints=_INTS_64, sets=False, keys="scalar"),
        documents.write_msgpack,
        _pairs(documents.read_msgpack),
        "msgpack",
    ),
    CBOR: _Encoding("cbor", Rules(), documents.write_cbor, _pairs(documents.read_cbor), "cbor2"),
    JSON: _Encoding(
        "json",
        Rules(**_JSON_LIKE, keys="text"),  # type: ignore[arg-type]  # the types are right
        documents.write_json,
        _pairs(documents.read_json),
    ),
    VALUES: _Encoding(
        "value",
        Rules(**_JSON_LIKE, keys="text", messages=MAX_MESSAGES),  # type: ignore[arg-type]  # as above
        _write_value,
        _read_values,
    ),
}

_EXTRAS = {"msgpack": "msgpack", "cbor2": "cbor"}


def encoding_of(content_type: str) -> int | None:
    """Give the number for a content type, whose parameters do not matter; None: it has none."""
    plain_type = content_type.partition(";")[0].strip().lower()
    return next((number for number, name in CONTENT_TYPES.items() if name == plain_type), None)


def fault_of(encoding: int) -> str | None:
    """Say why this node cannot do an encoding; None: it can. On any thread."""
    found = _ENCODINGS.get(encoding)
    if found is None:
        return f"This node does not know the payload encoding {encoding}."
    if found.package and not documents.is_installed(found.package):
        extra = _EXTRAS[found.package]
        return (
            f"This node has no package {found.package}, which does {CONTENT_TYPES[encoding]}:"
            f" install genrpc[{extra}] there, or use terms."
        )
    return None


# ---------------------------------------------------------------- decoding


def decode_arguments(
    encoding: int, head: Buffer, buffers: Sequence[Buffer] = (), *, max_depth: int
) -> Arguments:
    """Decode the arguments of a call; raises CodecError, a sentence, for whatever is wrong.

    Each argument may be nested `max_depth` deep.
    """
    found = _able(encoding)
    try:
        return found.read(bytes(head), buffers, max_depth)
    except CodecError as error:
        raise CodecError(f"The arguments cannot be decoded ({found.name}): {error}.") from None


def _able(encoding: int) -> _Encoding:
    fault = fault_of(encoding)
    if fault is not None:
        raise CodecError(fault)
    return _ENCODINGS[encoding]


# ---------------------------------------------------------------- encoding


def encode_value(encoding: int, value: object, *, max_depth: int, max_bytes: int) -> bytes:
    """Encode a result.

    Raises CodecError, with a sentence that names the encodings that would hold it, or
    OversizeError for more than `max_bytes`.
    """
    found = _able(encoding)
    try:
        form = plain(value, max_depth=max_depth, max_bytes=max_bytes)
    except UnfitError as error:
        raise CodecError(
            f"The result has {error}, for which there is no neutral form: return plain data"
            " (numbers, text, bytes, lists, dicts)."
        ) from None
    data = _written(found, form)
    if len(data) > max_bytes:
        raise OversizeError(f"The result has {len(data)} bytes and may have {max_bytes}.")
    return data


def _written(found: _Encoding, form: object) -> bytes:
    try:
        check(form, found.rules)
    except UnfitError as error:
        raise CodecError(
            f"The result has {error}, which does not fit the reply encoding {found.name}:"
            f" {_advice(form)}."
        ) from None
    return found.write(form)


def _advice(form: object) -> str:
    fitting = [
        each.name
        for number, each in _ENCODINGS.items()
        if fault_of(number) is None and _fits(form, each.rules)
    ]
    if not fitting:
        return "no other encoding holds it either, so return something simpler"
    return f"ask for {' or '.join(fitting)}, where it fits"


def _fits(form: object, rules: Rules) -> bool:
    try:
        check(form, rules)
    except UnfitError:
        return False
    return True
