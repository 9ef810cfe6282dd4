"""The unary methods' messages, taken apart without a look into values.

A request may hold megabytes of arguments, and the loop thread is not to decode them. So it reads
requests by messages that say `bytes` where the proto has a message of values: on the wire the two
are the same. Such a field is `repeated`, since protobuf lets a message come in pieces, which are
to be joined. Results, which workers have encoded, go out the same way.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from .refusals import RefusedError

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}

# By message, in the order of their field numbers: name and type; "*" means repeated, "|" a
# member of the message's oneof.
_LAYOUT = {
    "Mfa": (
        "module string",
        "function string",
        "args *bytes",
        "terms *bytes",
        "encoded *bytes",
        "kwargs *bytes",
        "module_version string",
    ),
    "CallRequest": ("mfa Mfa", "reply_encoding int32", "idempotency_key string"),
    "CastRequest": ("mfa Mfa", "ordering_key string"),
    "Encoded": ("content_type string", "data bytes", "buffers *bytes"),
    "Result": ("value |bytes", "term |bytes", "encoded |Encoded"),
    "Duration": ("seconds int64", "nanos int32"),
    "CallResponse": ("result |Result", "error |bytes", "node string", "elapsed Duration"),
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="genrpc_envelopes.proto", package="genrpc.envelopes", syntax="proto3"
    )
    for name, fields in _LAYOUT.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(map(str.split, fields), 1):
            added = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
            mark, kind = (kind[0], kind[1:]) if kind[0] in "*|" else ("", kind)
            if mark == "*":
                added.label = _Field.LABEL_REPEATED
            elif mark == "|":
                if not message.oneof_decl:
                    message.oneof_decl.add(name="kind")
                added.oneof_index = 0
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type = _Field.TYPE_MESSAGE
                added.type_name = f".genrpc.envelopes.{kind}"
    return file


# A pool of its own: reflection does not show it, and it meets no other program's files.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _message(name: str) -> Any:  # noqa: ANN401  # a class that protobuf makes
    descriptor = _pool.FindMessageTypeByName(f"genrpc.envelopes.{name}")
    return message_factory.GetMessageClass(descriptor)


CallRequest = _message("CallRequest")
CastRequest = _message("CastRequest")
Encoded = _message("Encoded")
CallResponse = _message("CallResponse")


def parse(message: Any, data: bytes) -> Any:  # noqa: ANN401  # of protobuf, ours or generated
    """Read a request; raises RefusedError."""
    try:
        return message.FromString(data)
    except DecodeError:
        name = message.DESCRIPTOR.name
        raise RefusedError("bad_arguments", f"The request is no genrpc.v1.{name}.") from None


def joined(pieces: Any) -> bytes | None:  # noqa: ANN401  # a field of protobuf
    """Give the bytes of a message that may have come in pieces; None: it did not come."""
    return b"".join(pieces) if pieces else None
