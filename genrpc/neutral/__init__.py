"""Payloads that need no Python: terms, JSON-like values, JSON, MessagePack and CBOR.

What a value becomes (read from left to right for results, from right to left for arguments):

    Python                    Term            Value, JSON        MessagePack       CBOR
    None, bool, str           the same        the same           the same          the same
    int                       any size (1)    to ±2^53 (2)       64 bits           any size
    float                     all             finite (2)         all               all
    bytes, bytearray,
      memoryview → bytes      bytes_value     –                  bin               byte string
    list                      list_value      array              array             array
    tuple                     tuple_value     array → list       array → list      array → list
    set, frozenset → set      set_value       –                  –                 tag 258
    dict                      map_value (3)   text keys only     scalar keys       any keys (3)
    Atom                      atom_value      text               text              text
    Enum                      as its value
    dataclass                 as a dict of its fields
    namedtuple                as a tuple
    datetime, date, time      text, ISO 8601
    timedelta                 float, seconds
    Decimal, UUID, Path       text
    numpy scalar              bool, int, float, str or bytes
    numpy array               nested lists, of such scalars only

"–" does not fit, and so do not: complex numbers, functions, generators, iterators, exceptions,
other classes' instances, text with lone surrogates. Subclasses of a type go as the type. A dict of
a Value has no order. What does not fit is refused with a sentence that names what would hold it.

(1) Up to 20,000 digits. (2) RFC 7493: beyond that, JavaScript and others would change it in
silence. A whole number in a Value arrives as int up to 2^53, and as float otherwise; -0.0 stays.
JSON's text tells 5 from 5.0. (3) Keys are scalars, bytes, and tuples and frozensets of them.

Limits: `max_depth` containers in one another, in a Term or Value also what readers of protobuf
take (100 messages: 48 lists or 32 dicts), and `max_bytes`. Rules: nothing here unpickles; a bad
payload raises CodecError and nothing else. Encoding runs users' code (fields, __fspath__), so
workers call it, never the loop thread.
"""

from genrpc.neutral.forms import Atom, OversizeError
from genrpc.neutral.payloads import (
    CBOR,
    CONTENT_TYPES,
    JSON,
    MSGPACK,
    TERMS,
    VALUES,
    decode_arguments,
    encode_value,
    encoding_of,
    fault_of,
)

__all__ = [
    "CBOR",
    "CONTENT_TYPES",
    "JSON",
    "MSGPACK",
    "TERMS",
    "VALUES",
    "Atom",
    "OversizeError",
    "decode_arguments",
    "encode_value",
    "encoding_of",
    "fault_of",
]
