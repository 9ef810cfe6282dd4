"""Values, exceptions and failures to payload bytes and back.

The only place that unpickles, and so the place where one must have asked first whether the peer
is authenticated and the policy allows the target. `payload` has arguments and results,
`by_value` what goes by value in them, `exceptions` the failures, `rebuild` what pickles made here
call when they are decoded.

Users' code runs in here (`__reduce__`, `__setstate__`, `__str__`): it is called in callers' threads
and in workers, never on the loop thread; `encode_error` and `is_writable` alone run anywhere.
Everything is safe to call from many threads at once.
"""

from genrpc.codec.exceptions import decode_error, encode_error, encode_exception
from genrpc.codec.payload import (
    OUT_OF_BAND_BYTES,
    Buffer,
    Payload,
    Unpickle,
    decode_arguments,
    decode_value,
    encode_arguments,
    encode_value,
    is_writable,
)

__all__ = [
    "OUT_OF_BAND_BYTES",
    "Buffer",
    "Unpickle",
    "Payload",
    "encode_arguments",
    "encode_value",
    "decode_arguments",
    "decode_value",
    "is_writable",
    "encode_exception",
    "encode_error",
    "decode_error",
]
