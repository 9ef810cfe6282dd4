"""Values to payloads for other languages and back, exactly; what does not fit is refused."""

import array
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import pickle
import sys
import uuid
from collections import OrderedDict, namedtuple

import pytest
from google.protobuf import struct_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

import genrpc
from genrpc import neutral
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import CodecError
from genrpc.neutral import CBOR, JSON, MSGPACK, TERMS, VALUES, Atom, OversizeError, documents
from genrpc.neutral.forms import MAX_INT_DIGITS, digits_of, int_of

PACKAGES = {MSGPACK: "msgpack", CBOR: "cbor2"}
MIB = 2**20

quick = settings(max_examples=60, deadline=None)  # the machine may be busy


def able(*encodings):
    """Parameters of the encodings; those whose package is absent are skipped."""
    return [
        pytest.param(
            each,
            marks=pytest.mark.skipif(
                each in PACKAGES and not documents.is_installed(PACKAGES[each]),
                reason="an extra that is not installed",
            ),
            id={TERMS: "term", JSON: "json", MSGPACK: "msgpack", CBOR: "cbor", VALUES: "value"}[
                each
            ],
        )
        for each in encodings
    ]


ALL = able(TERMS, JSON, MSGPACK, CBOR, VALUES)


def encode(encoding, value, max_depth=100, max_bytes=MIB):
    return neutral.encode_value(encoding, value, max_depth=max_depth, max_bytes=max_bytes)


def decode(encoding, head, *buffers, max_depth=100):
    return neutral.decode_arguments(encoding, head, buffers, max_depth=max_depth)


def as_argument(encoding, data):
    """Make the payload of a call with one argument of an encoded value."""
    if encoding == TERMS:
        return pb.Terms(args=[pb.Term.FromString(data)]).SerializeToString()
    if encoding == VALUES:
        value = struct_pb2.Value.FromString(data)
        return struct_pb2.ListValue(values=[value]).SerializeToString()
    before, after = {
        JSON: (b"[[", b"],{}]"),
        MSGPACK: (b"\x92\x91", b"\x80"),
        CBOR: (b"\x82\x81", b"\xa0"),
    }[encoding]
    return before + data + after


def there_and_back(encoding, value, max_depth=100):
    data = encode(encoding, value, max_depth=max_depth)
    (args, kwargs) = decode(encoding, as_argument(encoding, data), max_depth=max_depth)
    assert kwargs == {}
    return args[0]


def shown(value):
    """A text that tells apart all that must come back as it was: types, NaN, -0.0."""
    if isinstance(value, dict):
        pairs = sorted((shown(key), shown(item)) for key, item in value.items())
        return f"dict{pairs}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(map(shown, value))}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[shown(item) for item in value]}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"int {value:x}"
    return f"{type(value).__name__} {value!r}"


# ---------------------------------------------------------------- exact both ways

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(st.none(), st.booleans(), texts)
huge = st.integers() | st.integers(-(10**40), 10**40)


def trees(leaves, keys, *more):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner), st.dictionaries(keys, inner), *(each(inner) for each in more)
        ),
        max_leaves=30,
    )


hashables = st.recursive(
    st.one_of(scalars, huge, st.floats(allow_nan=False), st.binary()),
    lambda inner: st.one_of(st.lists(inner).map(tuple), st.frozensets(inner)),
    max_leaves=6,
)
any_trees = trees(
    st.one_of(scalars, huge, st.floats(), st.binary()),
    hashables,
    lambda inner: st.sets(hashables),
)


@quick
@given(
    trees(
        st.one_of(scalars, huge, st.floats(), st.binary(), texts.map(Atom)),
        hashables | texts.map(Atom),
        lambda inner: st.sets(hashables),
        lambda inner: st.lists(inner).map(tuple),
    )
)
@example([True, 1, 1.0, -0.0, math.nan, math.inf, -math.inf])
@example([2**63 - 1, 2**63, -(2**63), -(2**63) - 1])
@example({1: True, "1": None, b"1": [], (1,): {}, frozenset({1}): set()})
def test_terms_give_every_value_back(value):
    assert shown(there_and_back(TERMS, value)) == shown(value)


@pytest.mark.skipif(not documents.is_installed("cbor2"), reason="an extra that is not installed")
@quick
@given(any_trees)
def test_cbor_gives_all_but_tuples_and_atoms_back(value):
    assert shown(there_and_back(CBOR, value)) == shown(value)


@pytest.mark.skipif(not documents.is_installed("msgpack"), reason="an extra that is not installed")
@quick
@given(
    trees(
        st.one_of(scalars, st.integers(-(2**63), 2**64 - 1), st.floats(), st.binary()),
        st.one_of(scalars, st.integers(-(2**63), 2**64 - 1), st.binary()),
    )
)
def test_msgpack_gives_what_it_holds_back(value):
    assert shown(there_and_back(MSGPACK, value)) == shown(value)


exact = st.integers(-(2**53), 2**53)
finite = st.floats(allow_nan=False, allow_infinity=False)


@quick
@given(trees(st.one_of(scalars, exact, finite), texts))
@example([5, 5.0, -0.0, 2**53, -(2**53), 1e300])
def test_json_gives_what_it_holds_back(value):
    assert shown(there_and_back(JSON, value)) == shown(value)


fractions = finite.filter(lambda number: not number.is_integer() or abs(number) > 2**53)


@quick
@given(trees(st.one_of(scalars, exact, fractions, st.just(-0.0)), texts))
def test_values_give_what_they_hold_back(value):
    assert shown(there_and_back(VALUES, value)) == shown(value)


@quick
@given(st.integers(0, 3000), st.integers(-(10**20), 10**20))
@example(MAX_INT_DIGITS - 1, -1)
def test_digits_of_any_int_are_read_back(zeros, number):
    for value in (number * 10**zeros, number * 10**zeros - 1):
        # Not `==`: pytest would show numbers without end.
        assert not int_of(digits_of(value)) - value


def test_digits_are_those_of_python():
    for value in (0, 7, -7, 10**600, 10**600 - 1, 10**639 + 3):
        assert digits_of(value) == str(value)


def test_whole_numbers_of_a_value_are_ints_up_to_2_to_the_53():
    numbers = [5.0, 2.0**53, -(2.0**53), 2.0**53 + 2, 0.5]
    message = struct_pb2.ListValue()
    message.extend(numbers)
    args, _ = decode(VALUES, message.SerializeToString())
    assert [type(each) for each in args] == [int, int, int, float, float]
    assert list(args) == numbers


def test_values_of_nan_arrive_although_json_has_none():
    message = struct_pb2.ListValue()
    message.extend([math.nan, math.inf])
    args, _ = decode(VALUES, message.SerializeToString())
    assert math.isnan(args[0])
    assert args[1] == math.inf


def test_keyword_arguments_of_each_encoding():
    struct = struct_pb2.Struct()
    struct.update({"k": 3, "deep": {"a": [1]}})
    assert decode(VALUES, b"", struct.SerializeToString()) == ((), {"k": 3, "deep": {"a": [1]}})
    terms = pb.Terms(args=[pb.Term(int_value=1)], kwargs={"k": pb.Term(atom_value="x")})
    args, kwargs = decode(TERMS, terms.SerializeToString())
    assert args == (1,)
    assert type(kwargs["k"]) is Atom
    assert decode(JSON, b'[[1],{"k":2}]') == ((1,), {"k": 2})


# ---------------------------------------------------------------- neutral forms


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: object


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


Pair = namedtuple("Pair", "a b")


class MyInt(int):
    pass


class MyFloat(float):
    pass


class MyBytes(bytes):
    pass


UTC = datetime.timezone.utc
FORMS = [
    (Colour.RED, "red"),
    (Colour.PAIR, (1, 2)),
    (Level.HIGH, 3),
    (Point(1, Point(2, None)), {"x": 1, "y": {"x": 2, "y": None}}),
    (Pair(1, "b"), (1, "b")),
    (datetime.datetime(2024, 2, 29, 1, 2, 3, 4, UTC), "2024-02-29T01:02:03.000004+00:00"),
    (datetime.date(2024, 2, 29), "2024-02-29"),
    (datetime.time(1, 2), "01:02:00"),
    (datetime.timedelta(days=1, microseconds=1), 86400.000001),
    (decimal.Decimal("0.10"), "0.10"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (MyInt(7), 7),
    (MyFloat(0.5), 0.5),
    (MyBytes(b"x"), b"x"),
    (bytearray(b"x"), b"x"),
    (memoryview(b"abc")[::2], b"ac"),
    (frozenset({1}), {1}),
    (OrderedDict(a=1), {"a": 1}),
    ({Level.HIGH: 1, Colour.PAIR: 2, uuid.UUID(int=0): 3}, None),
    ({(Level.HIGH, frozenset({Level.HIGH})): 1}, {(3, frozenset({3})): 1}),
]


@pytest.mark.parametrize(("value", "form"), FORMS)
def test_forms_of_python_types(value, form):
    if form is None:
        form = {3: 1, (1, 2): 2, str(uuid.UUID(int=0)): 3}
    assert shown(there_and_back(TERMS, value)) == shown(form)


def test_forms_of_numpy():
    numpy = pytest.importorskip("numpy")
    for value, form in (
        (numpy.float64(0.5), 0.5),
        (numpy.float32(0.1), float(numpy.float32(0.1))),
        (numpy.int64(-5), -5),
        (numpy.uint64(2**64 - 1), 2**64 - 1),
        (numpy.bool_(True), True),
        (numpy.str_("ü"), "ü"),
        (numpy.bytes_(b"x"), b"x"),
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (numpy.array(1.5), 1.5),
        (numpy.array(["a", "bc"]), ["a", "bc"]),
    ):
        assert shown(there_and_back(TERMS, value)) == shown(form)


def test_numpy_values_without_a_form_are_refused():
    numpy = pytest.importorskip("numpy")
    for value in (
        numpy.datetime64("2024-01-01"),
        numpy.array([1j]),
        numpy.array([object()]),
        numpy.longdouble(1),
    ):
        with pytest.raises(CodecError, match="dtype"):
            encode(TERMS, value)


def test_a_numpy_array_over_the_limit_is_not_turned_into_lists():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(OversizeError):
        encode(TERMS, numpy.broadcast_to(numpy.int8(0), (10**12,)))


@dataclasses.dataclass(repr=False)
class Lazy:
    field: int = 0

    def __getattribute__(self, name):
        if name == "field":
            raise SystemExit("boom")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1j, "complex"),
        (object(), "object"),
        (Point, "type"),
        (iter([]), "list_iterator"),
        (len, "builtin_function_or_method"),
        (ValueError("x"), "ValueError"),
        (array.array("i", [1]), "array"),
        (range(3), "range"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ([{"a": (1, {2j})}], "complex"),
        ({"1": 0, decimal.Decimal(1): 1}, "same neutral form"),
        ({"1", decimal.Decimal(1)}, "same neutral form"),
        ({Frozen(1): 1}, "key of type"),
        (Lazy(), "failed when it was read"),
    ],
)
@pytest.mark.parametrize("encoding", ALL)
def test_what_has_no_neutral_form_is_refused(encoding, value, words):
    with pytest.raises(CodecError, match=words) as caught:
        encode(encoding, value)
    assert "boom" not in str(caught.value)


def test_control_c_in_a_users_code_goes_on():
    class Interrupted(datetime.date):
        def isoformat(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(TERMS, Interrupted(2024, 1, 1))


def test_later_changes_do_not_reach_the_payload():
    form = neutral.forms.plain(value := [[1]], max_depth=9, max_bytes=99)
    value[0].append(2)
    assert form == [[1]]


# ---------------------------------------------------------------- what does not fit


UNFIT = [
    (JSON, 2**53 + 1, "beyond 2\\*\\*53", "term or msgpack or cbor"),
    (VALUES, -(2**53) - 1, "beyond 2\\*\\*53", "term or msgpack or cbor"),
    (VALUES, 2**64, "beyond 2\\*\\*53", "term or cbor"),
    (VALUES, math.nan, "float nan", "term or msgpack or cbor"),
    (JSON, -math.inf, "float -inf", "term or msgpack or cbor"),
    (VALUES, b"x", "bytes", "term or msgpack or cbor"),
    (JSON, [{"a": b"x"}], "bytes", "term or msgpack or cbor"),
    (VALUES, {1: 2}, "key of type int", "term or msgpack or cbor"),
    (JSON, {(1, 2): 3}, "key of type tuple", "term or cbor"),
    (JSON, {1}, "a set", "term or cbor"),
    (MSGPACK, {1}, "a set", "term or cbor"),
    (MSGPACK, 2**64, "beyond 64 bits", "term or cbor"),
    (MSGPACK, {(1,): 1}, "key of type tuple", "term or cbor"),
]


@pytest.mark.parametrize(("encoding", "value", "why", "where"), UNFIT)
def test_what_does_not_fit_names_what_would_hold_it(encoding, value, why, where):
    for package in ("msgpack", "cbor2"):
        pytest.importorskip(package)
    with pytest.raises(CodecError, match=why) as caught:
        encode(encoding, value)
    assert f"ask for {where}, where it fits" in str(caught.value)


def test_an_int_of_too_many_digits_fits_nowhere():
    value = 10 ** (MAX_INT_DIGITS + 1)
    with pytest.raises(CodecError, match="no other encoding holds it either"):
        encode(TERMS, value)


def nested(depth, inner=0):
    for _ in range(depth):
        inner = [inner]
    return inner


def mapped(depth, inner=0):
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize("encoding", able(TERMS, VALUES))
def test_messages_are_not_nested_deeper_than_readers_take(encoding):
    for build, deepest in ((nested, 48), (mapped, 32)):
        value = build(deepest)
        assert there_and_back(encoding, value) == value
        data = encode(encoding, value)
        response = pb.CallResponse()
        if encoding == TERMS:
            response.result.term.ParseFromString(data)
        else:
            response.result.value.ParseFromString(data)
        pb.CallResponse.FromString(response.SerializeToString())
        with pytest.raises(CodecError, match="readers of protobuf"):
            encode(encoding, build(deepest + 1))


@pytest.mark.parametrize("encoding", ALL)
def test_depth_is_limited_both_ways(encoding):
    value = nested(9)
    assert there_and_back(encoding, value, max_depth=9) == value
    data = as_argument(encoding, encode(encoding, nested(10)))
    with pytest.raises(CodecError, match="max_depth"):
        decode(encoding, data, max_depth=9)
    with pytest.raises(CodecError, match=r"max_depth \(9\)"):
        encode(encoding, nested(10), max_depth=9)
    for key in ((((1,),),), frozenset({frozenset({frozenset()})})):
        with pytest.raises(CodecError, match="max_depth"):
            encode(encoding, {key: 1}, max_depth=3)


@pytest.mark.parametrize("encoding", ALL)
def test_a_dict_counts_in_the_depth(encoding):
    assert there_and_back(encoding, mapped(9), max_depth=9) == mapped(9)
    data = as_argument(encoding, encode(encoding, mapped(10)))
    with pytest.raises(CodecError, match="max_depth"):
        decode(encoding, data, max_depth=9)


def test_a_value_that_contains_itself_is_refused():
    circle: list = []
    circle.append(circle)
    with pytest.raises(CodecError, match="max_depth"):
        encode(TERMS, circle)


@pytest.mark.parametrize("encoding", ALL)
def test_size_is_limited_exactly(encoding):
    value = ["x" * 100] * 10
    size = len(encode(encoding, value))
    assert len(encode(encoding, value, max_bytes=size)) == size
    with pytest.raises(OversizeError):
        encode(encoding, value, max_bytes=size - 1)


def test_a_value_far_over_the_limit_is_not_built():
    shared: object = "x" * 1000
    for _ in range(60):
        shared = [shared] * 10
    with pytest.raises(OversizeError):
        encode(TERMS, shared)


# ---------------------------------------------------------------- bad payloads


BAD = [
    (JSON, b"{nonsense"),
    (JSON, b""),
    (JSON, b"\xff\xfe"),
    (JSON, b"[[NaN],{}]"),
    (JSON, b"[[Infinity],{}]"),
    (JSON, b"[[1e400],{}]"),
    (JSON, b'[[{"a":1,"a":2}],{}]'),
    (JSON, b"[[" + b"9" * 5000 + b"],{}]"),
    (JSON, b"[" * 200_000),
    (JSON, b'[["\\ud800"],{}]'),
    (JSON, b'[[{"\\udfff":1}],{}]'),
    (JSON, b"5"),
    (JSON, b"[[1]]"),
    (JSON, b"[{},[]]"),
    (JSON, b"[[],[]]"),
    (MSGPACK, b"\xc1\xc1"),
    (MSGPACK, b""),
    (MSGPACK, b"\x91" * 100_000 + b"\x00"),
    (MSGPACK, b"\x92\x90\x80\x00"),  # something follows
    (MSGPACK, b"\x92\x91\xd4\x05\x00\x80"),  # an extension type
    (MSGPACK, b"\x92\x91\xd6\xff\x00\x00\x00\x00\x80"),  # a timestamp
    (MSGPACK, b"\x92\x91\xa1\xff\x80"),  # text that is no UTF-8
    (MSGPACK, b"\x92\x90\x82\xa1a\x00\xa1a\x01"),  # equal keys
    (MSGPACK, b"\x92\x91\x81\x91\x00\x00\x80"),  # an array for a key
    (MSGPACK, b"\x92\x90\x81\x01\x02"),  # a keyword that is no text
    (MSGPACK, b"\x92\x91\xdd\xff\xff\xff\xff\x80"),
    (CBOR, b"\xff\xff"),
    (CBOR, b""),
    (CBOR, b"\x81" * 100_000 + b"\x00"),
    (CBOR, b"\x82\x81\xc1\x00\xa0"),  # a date
    (CBOR, b"\x82\x81\xd9\x03\xe8\x00\xa0"),  # an unknown tag
    (CBOR, b"\x82\x81\xf7\xa0"),  # undefined
    (CBOR, b"\x82\x81\xd8\x23\x61(\xa0"),  # a regular expression that is none
    (CBOR, b"\x82\x81\xd8\x1c\x81\xd8\x1d\x00\xa0"),  # a list that contains itself
    (CBOR, b"\x82\x82\xd8\x1c\x81\x00\xd8\x1d\x00\xa0"),  # a list in two places
    (CBOR, b"\x82\x81\xa1\xa1\x00\x01\x01\xa0"),  # a map for a key
    (CBOR, b"\x82\x80\xa0\x00"),  # something follows
    (CBOR, b"\x82\x81\xa2\x61a\x00\x61a\x01\xa0"),  # equal keys
    (CBOR, b"\x82\x80\xbf\x61a\x00\x61a\x01\xff"),  # equal keys of a map without a length
    (CBOR, b"\x82\x81\xa2\x01\x00\xfb\x3f\xf0" + b"\x00" * 6 + b"\x01\xa0"),  # 1 and 1.0
    (CBOR, b"\x82\x81\xd9\x01\x02\x82\x01\x01\xa0"),  # equal items of a set
    (CBOR, b"\x82\x81\x9b" + b"\xff" * 8),
    (CBOR, b"\x82\x81\x5b\x00\x00\x00\x40" + b"\x00" * 4),
    (TERMS, b"\xff\xff\xff"),
    (VALUES, b"\xff\xff\xff"),
    (VALUES, struct_pb2.ListValue(values=[struct_pb2.Value()]).SerializeToString()),
]


def test_every_way_to_write_cbor_is_read():
    pytest.importorskip("cbor2")
    wide = b"\x9b\x00\x00\x00\x00\x00\x00\x00\x02"  # an array of 2, in 8 bytes
    open_text = b"\x7f\x61a\x61b\xff"
    open_bytes = b"\x5f\x41a\x41b\xff"
    big = b"\xc2\x49\x01" + b"\x00" * 8
    halves = b"\xf9\x3c\x00"
    args = (
        b"\x9f"
        + open_text
        + open_bytes
        + big
        + halves
        + b"\xd9\xd9\xf7\x18\xff\xbf\x01\x02\xff\xff"
    )
    (text, data, number, half, told, table), kwargs = decode(
        CBOR, wide + args + b"\xb8\x01\x61k\xf4"
    )
    assert (text, data, number, half, told) == ("ab", b"ab", 2**64, 1.0, 255)
    assert table == {1: 2}
    assert kwargs == {"k": False}


@pytest.mark.parametrize(("encoding", "data"), BAD, ids=lambda each: repr(each)[:40])
def test_bad_payloads_are_refused_with_a_sentence(encoding, data):
    if encoding in PACKAGES:
        pytest.importorskip(PACKAGES[encoding])
    with pytest.raises(CodecError) as caught:
        decode(encoding, data)
    assert str(caught.value).startswith("The arguments cannot be decoded")


def terms(*args):
    return pb.Terms(args=args).SerializeToString()


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (pb.Term(big_int_value="1.5"), "decimal digits"),
        (pb.Term(big_int_value=""), "decimal digits"),
        (pb.Term(big_int_value="--1"), "decimal digits"),
        (pb.Term(big_int_value="٣"), "decimal digits"),
        (pb.Term(big_int_value="1" * (MAX_INT_DIGITS + 1)), "decimal digits"),
        (pb.Term(set_value=pb.TermList(items=[pb.Term(list_value=pb.TermList())])), "a list"),
        (pb.Term(set_value=pb.TermList(items=[pb.Term(), pb.Term()])), "two equal items"),
        (
            pb.Term(map_value=pb.TermMap(entries=[pb.TermEntry(), pb.TermEntry()])),
            "two equal keys",
        ),
        (
            pb.Term(
                map_value=pb.TermMap(entries=[pb.TermEntry(key=pb.Term(map_value=pb.TermMap()))])
            ),
            "a map",
        ),
    ],
    ids=str,
)
def test_terms_that_mean_nothing_are_refused(term, words):
    with pytest.raises(CodecError, match=words):
        decode(TERMS, terms(term))


def test_a_small_int_may_come_as_a_big_one():
    assert decode(TERMS, terms(pb.Term(big_int_value="-07"))) == ((-7,), {})


@pytest.mark.parametrize("encoding", able(TERMS, JSON, MSGPACK, CBOR, VALUES))
@quick
@given(data=st.binary(max_size=60))
def test_no_bytes_do_more_than_to_be_refused(encoding, data):
    try:
        args, kwargs = decode(encoding, data, data)
    except CodecError:
        return
    assert type(args) is tuple
    assert all(type(name) is str for name in kwargs)


def test_no_reader_knows_pickle():
    canary = pickle.dumps(([], {}))
    for encoding in (TERMS, JSON, MSGPACK, CBOR, VALUES):
        if encoding in PACKAGES and not documents.is_installed(PACKAGES[encoding]):
            continue
        with pytest.raises(CodecError):
            decode(encoding, canary)


# ---------------------------------------------------------------- names of encodings


def test_content_types_are_read_as_mime_says():
    for text in ("application/json", "Application/JSON", " application/json; charset=utf-8"):
        assert neutral.encoding_of(text) == JSON
    assert neutral.encoding_of("application/msgpack") == MSGPACK
    assert neutral.encoding_of("application/cbor") == CBOR
    for text in ("", "application/x-python-pickle", "json", "text/json"):
        assert neutral.encoding_of(text) is None


def test_unknown_encodings_are_named():
    assert "77" in (neutral.fault_of(77) or "")
    with pytest.raises(CodecError, match="77"):
        decode(77, b"")
    with pytest.raises(CodecError, match="77"):
        encode(77, 1)


def test_a_missing_package_is_said_in_a_sentence(monkeypatch):
    documents.is_installed.cache_clear()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for package in ("msgpack", "cbor2"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    try:
        assert "genrpc[msgpack]" in (neutral.fault_of(MSGPACK) or "")
        assert "genrpc[cbor]" in (neutral.fault_of(CBOR) or "")
        assert neutral.fault_of(TERMS) is None
        with pytest.raises(CodecError, match=r"install genrpc\[cbor\]"):
            decode(CBOR, b"\x82\x80\xa0")
        with pytest.raises(CodecError, match="ask for term, where it fits"):
            encode(VALUES, b"x")
    finally:
        documents.is_installed.cache_clear()


# ---------------------------------------------------------------- atoms


def test_an_atom_is_its_text_and_shows_what_it_is():
    atom = genrpc.Atom("ok")
    assert type(atom) is Atom
    assert atom == "ok"
    assert hash(atom) == hash("ok")
    assert repr(atom) == "Atom('ok')"


def test_an_atom_survives_a_pickle_under_its_public_name():
    data = pickle.dumps(Atom("ok"))
    assert b"neutral" not in data
    assert type(pickle.loads(data)) is Atom


def test_atoms_are_text_where_there_are_none():
    for encoding in (JSON, VALUES, *(each for each in PACKAGES if neutral.fault_of(each) is None)):
        assert shown(there_and_back(encoding, [Atom("ok")])) == shown(["ok"])


def test_json_is_compact_and_in_unicode():
    assert encode(JSON, {"ü": [1, 0.1]}) == '{"ü":[1,0.1]}'.encode()
    assert json.loads(encode(JSON, None)) is None
