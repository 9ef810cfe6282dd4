"""Values and failures survive the way there and back, and what cannot says so."""

import asyncio
import contextlib
import functools
import gc
import importlib
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrpc import codec
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.codec import exceptions, rebuild
from genrpc.errors import BadRPC, CodecError, RemoteExit, TransportError
from genrpc.policy import pickles

LARGE = codec.OUT_OF_BAND_BYTES


def carry(parts):
    """Do to the parts what the transport does: bytes, or a bytearray where it may be written."""
    head, buffers = parts
    return head, [bytearray(b) if codec.is_writable(b) else bytes(b) for b in buffers]


def there(*args, snapshot=False, **kwargs):
    """Send arguments."""
    return codec.decode_arguments(*carry(codec.encode_arguments(args, kwargs, snapshot=snapshot)))


def back(value):
    """Send a result."""
    return codec.decode_value(*carry(codec.encode_value(value, snapshot=False)))


def raised(function, *args):
    try:
        function(*args)
    except BaseException as exc:
        return exc
    raise AssertionError("it raised nothing")


def received(exc, **options):
    """Send an exception; give what the caller sees."""
    reason = codec.decode_error(codec.encode_exception(exc, execution="finished", **options)).reason
    assert isinstance(reason, RemoteExit)
    return reason


# ---------------------------------------------------------------- plain data

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
blobs = st.sampled_from([LARGE - 1, LARGE, LARGE + 1]).flatmap(
    lambda size: st.sampled_from([b"b" * size, bytearray(size)])
)
values = st.recursive(
    scalars | st.floats(allow_nan=False) | blobs,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def shape(value):
    """Types all the way down: == does not tell bytes from bytearray."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [shape(item) for item in value]
    return type(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=2))
def test_any_plain_data_arrives_with_its_types(args, kwargs):
    parts = carry(codec.encode_arguments(args, kwargs, snapshot=True))
    arrived = codec.decode_arguments(*parts)
    assert arrived == (tuple(args), kwargs)
    assert shape(arrived) == shape((tuple(args), kwargs))
    assert back(args) == args


@pytest.mark.parametrize("args", [(), [], [1, "two"], (3.5, None, True), range(3)])
def test_arguments_arrive_as_a_tuple_and_a_dict(args):
    head, buffers = codec.encode_arguments(args, snapshot=False)
    assert codec.decode_arguments(head, buffers) == (tuple(args), {})


def test_keyword_arguments_may_be_any_mapping():
    assert there(1, b=2) == ((1,), {"b": 2})
    keywords = types.MappingProxyType({"a": [1]})
    parts = codec.encode_arguments((), keywords, snapshot=False)
    assert codec.decode_arguments(*parts) == ((), {"a": [1]})


def test_a_list_of_args_and_kwargs_is_decoded_as_well():
    assert codec.decode_arguments(pickle.dumps([[1], {"a": 2}])) == ((1,), {"a": 2})


@pytest.mark.parametrize("root", [5, (1, 2, 3), ((), {1: 2}), (1, None), ((), 7)])
def test_what_is_no_pair_of_args_and_kwargs_is_refused(root):
    with pytest.raises(CodecError, match="cannot decode the arguments"):
        codec.decode_arguments(pickle.dumps(root))


def test_a_thousand_levels_of_nesting_are_an_error_and_not_a_crash():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="RecursionError"):
        codec.encode_value(deep, snapshot=False)


# ---------------------------------------------------------------- large buffers


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, LARGE - 1, LARGE])
def test_large_bytes_travel_beside_the_pickle(kind, size):
    head, buffers = codec.encode_arguments([kind(b"x" * size)], snapshot=False)
    assert len(buffers) == (1 if size >= LARGE else 0)
    (arrived,), _ = codec.decode_arguments(*carry((head, buffers)))
    assert type(arrived) is (bytearray if kind is bytearray else bytes)
    assert arrived == b"x" * size


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: [x],
        lambda x: (1, x),
        lambda x: {"a": x},
        lambda x: [[[x]]],
        lambda x: {"a": [1, (x, 2)]},
        lambda x: [*range(300), x],
    ],
)
@pytest.mark.parametrize("send", [back, lambda value: there(value)[0][0]])
def test_nested_large_bytes_are_found_and_containers_left_alone(wrap, send):
    blob = b"x" * LARGE
    value = wrap(blob)
    _, buffers = codec.encode_arguments([value], {"k": wrap(blob)}, snapshot=False)
    assert [buffer is blob for buffer in buffers] == [True, True]
    assert send(value) == wrap(blob)
    assert value == wrap(blob)


@pytest.mark.parametrize("wrap", [lambda x: [[[[x]]]], lambda x: [*range(1_000), x]])
def test_the_search_for_large_bytes_has_an_end(wrap):
    value = wrap(b"x" * LARGE)
    assert codec.encode_arguments([value], snapshot=False)[1] == ()
    assert there(value)[0] == (value,)


def test_containers_that_occur_twice_stay_one():
    inner = {"blob": b"x" * LARGE}
    one, two = there(inner, [inner])[0]
    assert one is two[0]


def test_containers_in_a_circle_arrive_as_a_circle():
    circle = [b"x" * LARGE]
    circle.append(circle)
    arrived = back(circle)
    assert arrived[1] is arrived
    assert arrived[0] == b"x" * LARGE


def test_a_strided_memoryview_arrives_as_bytes():
    data = bytes(range(256)) * 1024
    view = memoryview(data)
    deep = [[[[view[4:8]]]]]
    assert there(view[::2], view[4:8], view[100:-100])[0] == (data[::2], data[4:8], data[100:-100])
    assert back(deep) == [[[[data[4:8]]]]]


def test_a_snapshot_holds_what_was_there_at_the_call():
    array, data = np.zeros(LARGE), bytearray(LARGE)
    fixed = array.view()
    fixed.flags.writeable = False
    parts = codec.encode_arguments([array, {"data": data}, memoryview(data), fixed], snapshot=True)
    array += 1
    data[:] = b"x" * LARGE
    data.append(0)  # no export of it is left
    one, two, three, four = codec.decode_arguments(*carry(parts))[0]
    assert not one.any()
    assert not four.any()
    assert two["data"] == three == bytes(LARGE)


def test_a_snapshot_does_not_copy_bytes():
    blob = b"x" * LARGE
    assert codec.encode_value([blob], snapshot=True)[1][0] is blob


def test_without_a_snapshot_arrays_are_not_copied():
    array = np.zeros(LARGE)
    _, (part,) = codec.encode_value(array, snapshot=False)
    array[:] = 1
    assert np.frombuffer(part).all()


def test_a_part_of_bytes_is_only_that_part():
    head, (part,) = codec.encode_value(
        pickle.PickleBuffer(memoryview(b"x" * LARGE + b"yz")[2:]), snapshot=True
    )
    assert codec.decode_value(head, [part]) == b"x" * (LARGE - 2) + b"yz"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0),
        np.arange(100_000),
        np.asfortranarray(np.ones((300, 400), "f4")),
        np.array(3.5),
        np.array([{"a": 1}, None]),
        np.arange(200_000)[::2],
        np.arange(200_000, dtype=">u2").reshape(2, -1).T,
        np.zeros(10_000, [("x", "i4"), ("y", "f8")]),
        np.array(["2024-01-01"] * 20_000, "M8[s]"),
        np.array(["text"] * 20_000),
        np.zeros((0, 3)),
    ],
)
def test_arrays_arrive_equal_and_writable(array):
    arrived = back(array)
    assert arrived.dtype == array.dtype
    assert arrived.flags.writeable
    np.testing.assert_array_equal(arrived, array)
    np.testing.assert_array_equal(there([array], 5)[0][0][0], array)


def test_a_read_only_array_stays_read_only():
    array = np.zeros(LARGE)
    array.flags.writeable = False
    assert not back(array).flags.writeable


def test_small_arrays_stay_in_the_pickle():
    assert codec.encode_value([np.arange(10)], snapshot=False)[1] == ()


@pytest.mark.parametrize(
    ("buffer", "writable"),
    [
        (b"", False),
        (bytearray(), True),
        (memoryview(b""), False),
        (memoryview(bytearray()), True),
    ],
)
def test_the_transport_learns_which_parts_are_writable(buffer, writable):
    assert codec.is_writable(buffer) is writable


# ---------------------------------------------------------------- by value


def make_counter(start):
    def count():
        nonlocal start
        start += 1
        return start

    return count


def test_closures_arrive_with_what_they_close_over():
    count = back(make_counter(41))
    assert (count(), count()) == (42, 43)


def test_a_closure_without_its_value_yet_arrives():
    def early():
        return late

    arrived = back(early)
    with pytest.raises(NameError):
        arrived()
    late = 5
    assert back(early)() == 5


def test_functions_that_can_be_imported_go_by_name():
    assert back([subprocess.run, os.path.join]) == [subprocess.run, os.path.join]
    assert back(make_counter) is make_counter


def test_large_arrays_in_a_closure_stay_out_of_the_pickle():
    array, lock = np.zeros(LARGE), threading.Lock()

    def total():
        with lock:  # only dill knows locks
            return array.sum()

    # Whichever comes first: pickle gives up at the lock.
    for value in ([total, array], [array, total]):
        head, buffers = codec.encode_value(value, snapshot=False)
        assert (len(head) < LARGE, len(buffers)) == (True, 1)
        arrived = codec.decode_value(*carry((head, buffers)))
        (function,) = (each for each in arrived if callable(each))
        assert function() == 0


def test_a_local_class_comes_home_as_itself():
    class Local:
        pass

    assert back(Local) is Local
    assert type(back(Local())) is Local
    assert type(there(Local(), lambda: Local())[0][1]()) is Local


def test_code_of_another_python_is_refused_with_words():
    with pytest.raises(ValueError, match=r"from Python 2\.7"):
        rebuild.make_code("2.7", b"")


@pytest.fixture
def absent_module(tmp_path, monkeypatch):
    """A module that is imported here, and that peers lack."""
    (tmp_path / "absent_there.py").write_text(
        textwrap.dedent(
            """
            import functools, typing
            FACTOR = 2
            T = typing.TypeVar("T")
            class Pair:
                def __init__(self, a, b): self.a, self.b = a, b
            def swap(pair): return Pair(times(pair.b), pair.a)
            def times(x: T) -> T: return FACTOR * x
            @functools.lru_cache
            def cached(x): return times(x)
            renamed = functools.lru_cache(times)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("absent_there")
    yield module
    sys.modules.pop("absent_there", None)


def test_a_module_named_by_the_caller_goes_by_value(absent_module):
    names = frozenset({"absent_there"})
    args = (absent_module.swap, absent_module.Pair(1, 2), absent_module.cached)
    parts = codec.encode_arguments(args, snapshot=False, by_value=names)
    assert b"absent_there" not in codec.encode_arguments((1,), snapshot=False, by_value=names)[0]
    del sys.modules["absent_there"]
    (swap, pair, cached), _ = codec.decode_arguments(*parts)
    swapped = swap(pair)
    assert (swapped.a, swapped.b, cached(4)) == (4, 1, 8)
    # The result's class comes home as it left.
    home = back(swapped)
    assert type(home) is absent_module.Pair


def test_without_being_named_the_module_goes_by_name(absent_module):
    assert back(absent_module.cached) is absent_module.cached
    assert back([lambda: 1, absent_module.cached])[1] is absent_module.cached
    assert back(absent_module.renamed)(4) == 8  # no name leads to it
    assert back([absent_module.T, lambda: absent_module.T])[0] is absent_module.T


def test_modules_go_by_name_or_not_at_all():
    assert back([lambda: os.path, sys.modules["os"]])[1] is os
    with pytest.raises(CodecError, match="no node can import the module 'made_up'"):
        there([types.ModuleType("made_up")])


def iter_forever():
    while True:
        yield


def test_the_same_class_received_twice_is_one_class():
    number = os.urandom(16)
    at_birth = {"__module__": "elsewhere", "__qualname__": "Made"}
    made = rebuild.make_class(type, "Made", (), at_birth, {}, number)
    assert rebuild.make_class(type, "Made", (), at_birth, {}, number) is made
    rebuild.fill_class(made, ({"rate": 3}, {}))
    assert made.rate == 3
    assert type(back(made())) is made


def test_a_class_of_two_threads_is_the_first():
    number = os.urandom(16)
    one, two = type("C", (), {}), type("C", (), {})
    assert rebuild.registry.receive(number, one) is one
    assert rebuild.registry.receive(number, two) is one


def test_received_classes_are_forgotten_with_their_last_instance():
    number = os.urandom(16)
    at_birth = {"__module__": "elsewhere", "__qualname__": "Made"}
    rebuild.make_class(type, "Made", (), at_birth, {}, number)
    gc.collect()
    assert rebuild.registry.find(number) is None


PEER = """
import base64, json, sys, traceback
from genrpc import codec
for line in sys.stdin:
    head, *buffers = [base64.b64decode(part) for part in json.loads(line)]
    try:
        (function, *args), kwargs = codec.decode_arguments(head, buffers)
        head, buffers = codec.encode_value(function(*args, **kwargs), snapshot=False)
        answer = [base64.b64encode(part).decode() for part in (head, *buffers)]
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps(answer), flush=True)
"""

CALLER = """
import base64, json, subprocess, sys
from genrpc import codec
peer = subprocess.Popen([sys.executable, "-c", {peer!r}], text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def run(function, *args, **kwargs):
    parts = codec.encode_arguments((function, *args), kwargs, snapshot=False)
    line = json.dumps([base64.b64encode(part).decode() for part in (parts[0], *parts[1])])
    print(line, file=peer.stdin, flush=True)
    answer = json.loads(peer.stdout.readline())
    assert isinstance(answer, list), answer
    head, *buffers = [base64.b64decode(part) for part in answer]
    return codec.decode_value(head, buffers)
{body}
peer.stdin.close()
sys.exit(peer.wait(20))
"""


def run_script(tmp_path, body, *options):
    """Run a program whose `run(function, …)` runs functions of its `__main__` elsewhere."""
    script = tmp_path / "script.py"
    script.write_text(CALLER.format(peer=PEER, body=textwrap.dedent(body)))
    done = subprocess.run(
        [sys.executable, *options, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


def test_instances_of_main_come_back_as_the_callers_own(tmp_path):
    run_script(
        tmp_path,
        """
        class Money:
            rate = 2
            __slots__ = ("amount", "__hidden")
            def __init__(self, amount): self.amount, self.__hidden = amount, amount
            def doubled(self): return Money(self.amount * self.rate)
            class Note: pass
        back = run(lambda money: money.doubled(), Money(21))
        assert isinstance(back, Money) and back.amount == 42
        assert type(run(Money.Note)) is Money.Note
        before, doubled = Money, Money.doubled
        assert run(lambda cls: cls, Money) is before and Money.doubled is doubled
        Money.rate = 3  # what the peer has is brought up to date
        assert run(Money.doubled, Money(1)).amount == 3
        """,
    )


def test_a_class_of_the_same_program_run_elsewhere_is_found_by_name(tmp_path):
    run_script(
        tmp_path,
        """
        from collections import OrderedDict
        class Money: pass
        from genrpc.codec import rebuild
        def make(name):
            birth = {"__module__": "__main__", "__qualname__": name}
            return rebuild.make_class(type, name, (), birth, {}, name.encode() * 16)
        assert make("Money") is Money
        assert make("OrderedDict") is not OrderedDict
        assert make("run") is not run
        assert make("f.<locals>.Money") is not Money
        """,
    )


def test_all_kinds_of_classes_of_main_work(tmp_path):
    run_script(
        tmp_path,
        """
        import abc, collections, dataclasses, enum, functools, typing
        class Base(abc.ABC):
            @abc.abstractmethod
            def f(self): ...
            def g(self): return self.f()
        class Sub(Base):
            def f(self): return (super().__init__(), __class__.__name__)[1]
            @functools.cached_property
            def seven(self): return 7
            @classmethod
            def make(cls): return cls()
            @staticmethod
            def same(x): return x
            @property
            def eight(self): return 8
        assert run(lambda s: [s.g(), s.seven, s.eight, s.same(9)], Sub()) == ["Sub", 7, 8, 9]
        assert type(run(Sub.make)) is Sub

        class Colour(enum.Enum):
            RED = CRIMSON = 1
            BLUE = 2
            def twice(self): return self.name * 2
        class Planet(enum.Enum):
            EARTH = (6.0, 2.0)
            def __init__(self, mass, radius): self.mass, self.radius = mass, radius
            @property
            def gravity(self): return self.mass / self.radius
        class Bits(enum.IntFlag):
            X = 1
            Y = 2
        assert run(lambda c: c, Colour.BLUE) is Colour.BLUE
        assert run(Colour.twice, Colour.RED) == "REDRED"
        assert run(lambda: list(Colour.__members__)) == ["RED", "CRIMSON", "BLUE"]
        assert run(lambda: Planet.EARTH.gravity) == 3.0
        assert run(lambda b: b | Bits.Y, Bits.X) == Bits.X | Bits.Y

        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            y: list = dataclasses.field(default_factory=list)
        @dataclasses.dataclass(slots=True)
        class Slotted:
            x: int = 3
        assert run(lambda p: dataclasses.replace(p, x=9), Point(1)) == Point(9)
        assert run(lambda p: [f.name for f in dataclasses.fields(p)], Point(1)) == ["x", "y"]
        assert run(lambda: Slotted(5)) == Slotted(5)

        class Named(typing.NamedTuple):
            a: int
            b: str = "q"
        plain = collections.namedtuple("plain", "u v")
        class Movie(typing.TypedDict):
            title: str
        T = typing.TypeVar("T", bound=int, covariant=True)
        class Box(typing.Generic[T]):
            def __init__(self, content: T): self.content = content
        class Meta(type):
            def __new__(kind, name, bases, body):
                return type.__new__(kind, name, bases, {**body, "tag": name})
        class Tagged(metaclass=Meta): pass
        assert run(lambda n: n, Named(1)) == Named(1) and run(lambda: Named(4).b) == "q"
        assert run(lambda p: p._replace(u=5), plain(1, 2)) == plain(5, 2)
        def title(movie: Movie) -> str: return movie["title"]
        assert run(title, Movie(title="t")) == "t"
        assert run(lambda: Box[int](4)).content == 4
        assert run(lambda: Tagged.tag) == "Tagged"
        """,
    )


def test_functions_of_main_bring_the_globals_they_use(tmp_path):
    run_script(
        tmp_path,
        """
        import asyncio, functools, math, threading
        import xml.dom.minidom
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        assert run(even, 10) is True and run(functools.partial(odd, 3)) is True
        @functools.lru_cache(None)
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        assert run(fib, 30) == 832040
        counter, unused, lock = 0, (i for i in ()), threading.Lock()
        def count():
            global counter
            with lock:
                counter += 1
            return counter
        assert run(lambda: [count(), count()]) == [1, 2] and counter == 0
        assert run(lambda: xml.dom.minidom.parseString("<a/>").documentElement.tagName) == "a"
        def tripled(function):
            @functools.wraps(function)
            def wrapper(*args): return 3 * function(*args)
            return wrapper
        @tripled
        def same(x, *, y=2): return x
        assert run(same, 4) == 12 and run(lambda: same.__name__) == "same"
        async def later(): return math.pi
        assert run(lambda: asyncio.run(later())) == math.pi
        def body():
            class Inside:
                number = counter
            return Inside.number
        assert run(body) == 0
        adder = run(lambda n: lambda x: x + n, 3)
        assert adder(4) == 7
        assert run(lambda *args, **kw: [args, kw], 1, [2], k=b"x" * 100_000) == [
            (1, [2]), {"k": b"x" * 100_000}]
        """,
    )


def test_interactive_definitions_work(tmp_path):
    run_script(
        tmp_path,
        """
        exec(compile("class Typed:\\n def f(self): return [self, other()]\\n", "<stdin>", "single"))
        exec(compile("def other(): return 5\\n", "<stdin>", "single"))
        made, five = run(Typed.f, Typed())
        assert type(made) is Typed and five == 5
        """,
    )


def test_dill_changes_nothing_for_the_program(tmp_path):
    run_script(
        tmp_path,
        """
        import pickle, threading
        before = dict(pickle._Pickler.dispatch)
        lock = threading.Lock()
        def locked():
            import pickle, sys
            with lock:
                return ["dill" in sys.modules, len(pickle._Pickler.dispatch)]
        assert run(locked) == [True, len(before)]
        assert "dill" in sys.modules and pickle._Pickler.dispatch == before
        """,
    )


def test_a_dill_of_the_programs_own_stays_as_it_is(tmp_path):
    run_script(
        tmp_path,
        """
        import dill, pickle, threading
        before = dict(pickle._Pickler.dispatch)
        codec.encode_value([threading.Lock(), lambda: 1], snapshot=False)
        assert pickle._Pickler.dispatch == before
        """,
    )


def test_plain_values_import_no_dill(tmp_path):
    run_script(
        tmp_path,
        """
        assert run(lambda x: x + 1, 41) == 42
        assert "dill" not in sys.modules
        """,
    )


# ---------------------------------------------------------------- refusals


class Stubborn:
    def __reduce_ex__(self, protocol):
        raise TypeError("I will not be encoded")


class Rude:
    """Raises what it is told to, when it is encoded or when it is decoded."""

    def __init__(self, encoding=None, decoding=None):
        self.encoding, self.decoding = encoding, decoding

    def __getstate__(self):
        if self.encoding:
            raise self.encoding
        return {"decoding": self.decoding}

    def __setstate__(self, state):
        raise state["decoding"]


@pytest.mark.parametrize("value", [Stubborn(), {"a": [1, (3, Stubborn())]}, iter_forever()])
def test_what_cannot_be_encoded_is_told_by_its_type(value):
    with pytest.raises(CodecError, match=f"value of type .*{type(value).__name__}") as info:
        codec.encode_value(value, snapshot=False)
    assert "pass plain data" in str(info.value)


def test_the_argument_that_cannot_be_encoded_is_named():
    with pytest.raises(CodecError, match=r"argument 2 of type .*\.Stubborn: TypeError: I will not"):
        there(1, Stubborn(), lambda: 1)
    with pytest.raises(CodecError, match=r"keyword argument 'k' of type builtins\.generator"):
        there(1, k=iter_forever())
    with pytest.raises(CodecError, match="cannot encode the arguments"):
        there(*range(200), Stubborn())


RUDE = [ValueError("no"), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), MemoryError()]


@pytest.mark.parametrize("error", RUDE)
def test_whatever_a_value_raises_is_a_codec_error(error):
    with pytest.raises(CodecError, match=type(error).__name__):
        there(Rude(encoding=error))
    with pytest.raises(CodecError, match=type(error).__name__):
        codec.encode_value(Rude(encoding=error), snapshot=False)
    with pytest.raises(CodecError, match=type(error).__name__):
        there(Rude(decoding=error))
    with pytest.raises(CodecError, match=type(error).__name__):
        back([Rude(decoding=error)])


def test_ctrl_c_goes_on_in_the_main_thread_only():
    stop = Rude(encoding=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        there(stop)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(raised(there, stop)))
    thread.start()
    thread.join(10)
    assert type(outcome[0]) is CodecError


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit("no text")


def test_an_unprintable_error_is_told_by_its_type():
    with pytest.raises(CodecError, match="Unprintable"):
        back(Rude(decoding=Unprintable()))


def test_a_class_that_hides_its_name_is_named_as_well():
    class Meta(type):
        @property
        def __module__(cls):
            raise ValueError

    hidden = Meta("Hidden", (), {"__reduce_ex__": Stubborn.__reduce_ex__})
    with pytest.raises(CodecError, match="Hidden"):
        codec.encode_value(hidden(), snapshot=False)


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_cut_pickle_is_refused(cut):
    head, _ = codec.encode_value([1, "text", {}], snapshot=False)
    with pytest.raises(CodecError, match="cannot decode the value"):
        codec.decode_value(head[:cut])


def test_missing_buffers_are_refused():
    head, _ = codec.encode_value(b"x" * LARGE, snapshot=False)
    with pytest.raises(CodecError):
        codec.decode_value(head, [])


def test_a_class_that_is_not_here_is_named():
    head = pickle.dumps(Path("x")).replace(b"pathlib", b"pathlxb")
    with pytest.raises(CodecError, match="pathlxb"):
        codec.decode_value(head)


def only(find):
    """A way to unpickle that reaches what `find` gives."""
    return functools.partial(pickles.unpickle, find=find)


def only_decimals(module, name):
    if module == "decimal":
        return getattr(importlib.import_module(module), name)
    raise pickle.UnpicklingError(f"{module}.{name} is not on the whitelist")


def test_a_whitelist_lets_in_what_it_names():
    from decimal import Decimal

    head, buffers = carry(codec.encode_arguments([Decimal("0.5"), b"x" * LARGE], snapshot=False))
    args, _ = codec.decode_arguments(head, buffers, unpickle=only(only_decimals))
    assert args == (Decimal("0.5"), b"x" * LARGE)


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("value", [os.getcwd, Runs(os.getcwd), Runs(eval, "1")])
def test_a_whitelist_keeps_out_all_else(value):
    head, buffers = codec.encode_value(value, snapshot=False)
    with pytest.raises(CodecError, match="not on the whitelist"):
        codec.decode_value(head, buffers, unpickle=only(only_decimals))


@pytest.mark.parametrize("value", [lambda: 1, type("Local", (), {}), threading.Lock()])
def test_nothing_by_value_passes_a_whitelist(value):
    head, buffers = codec.encode_value(value, snapshot=False)
    with pytest.raises(CodecError):
        codec.decode_value(head, buffers, unpickle=only(only_decimals))


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_open_file_is_refused_as_its_path_may_be_another_file_there(mode):
    with open(os.devnull, mode) as file, pytest.raises(CodecError, match="cannot pickle"):
        codec.encode_value(file, snapshot=True)


def test_many_threads_encode_and_decode_at_once():
    failures = []

    def work(number):
        with contextlib.suppress(AssertionError):
            for step in range(20):
                function, data = there(lambda x: x + number, {"n": [number] * step})[0]
                assert function(step) == step + number
                assert data == {"n": [number] * step}
            return
        failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


# ---------------------------------------------------------------- exceptions


class TargetError(Exception):
    pass


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Mumble(Exception):
    def __str__(self):
        raise RuntimeError("no str")

    __repr__ = __str__


class StubbornError(Exception):
    __reduce_ex__ = Stubborn.__reduce_ex__


class Explosive(Exception):
    def __reduce__(self):
        return (os._exit, (9,))

    def __setstate__(self, state):
        os._exit(9)

    def __new__(cls, *args, armed=False):
        if not armed:
            raise RuntimeError("made by somebody else")
        return super().__new__(cls, *args)

    def __init__(self, *args, armed=False):
        pass


class Slotted(Exception):
    __slots__ = ("code", "unset")


def fail(exc):
    raise exc


def slotted():
    exc = Slotted("text")
    exc.code = 7
    exc.extra = [1]
    return exc


EXCEPTIONS = [
    TargetError("text", 7),
    TwoArguments(1, 2),
    StubbornError("text of it"),
    Explosive("fuse", armed=True),
    slotted(),
    KeyError("k"),
    StopIteration(3),
    SystemExit(4),
    SystemExit(),
    KeyboardInterrupt("stop"),
    GeneratorExit(),
    RecursionError("deep"),
    asyncio.CancelledError("mine"),
    FileNotFoundError(2, "no", "name", None, "other"),
    BlockingIOError(11, "x", 5),
    ImportError("m", name="n", path="p"),
    NameError("x", name="y"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "bad"),
    SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
    subprocess.CalledProcessError(2, ["a"], b"out"),
    TransportError(reason="closed", execution="unknown"),
]


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=lambda exc: type(exc).__name__)
def test_exceptions_arrive_as_they_were(exc):
    arrived = received(exc)
    assert arrived.type == f"{type(exc).__module__}.{type(exc).__qualname__}"
    assert arrived.message == str(exc)
    again = arrived.exception
    assert type(again) is type(exc)
    assert (again.args, str(again), vars(again)) == (exc.args, str(exc), vars(exc))
    for name in ("errno", "filename", "filename2", "code", "value", "name", "start", "object"):
        assert getattr(again, name, None) == getattr(exc, name, None)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_exception_groups_arrive_with_their_members():
    group = ExceptionGroup("several", [ValueError(1), TwoArguments(1, 2)])  # noqa: F821
    arrived = received(raised(fail, group))
    assert [type(each) for each in arrived.exception.exceptions] == [ValueError, TwoArguments]
    assert "  | ValueError: 1" in arrived.traceback
    many = ExceptionGroup("many", [ValueError(n) for n in range(100)])  # noqa: F821
    for _ in range(10):
        many = ExceptionGroup("nested", [many])  # noqa: F821
    text = received(many).traceback
    assert text.count("nested") == 4


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_notes_arrive():
    exc = ValueError("x")
    exc.add_note("look here")
    exc.__notes__.append(5)
    arrived = received(exc)
    assert arrived.traceback == "ValueError: x\nlook here\n"
    assert arrived.exception.__notes__ == ["look here", 5]


def test_an_unprintable_exception_arrives():
    arrived = received(Mumble())
    assert arrived.message == "<unprintable Mumble object>"
    assert type(arrived.exception) is Mumble


def test_attributes_that_cannot_be_encoded_are_left_behind():
    exc = ValueError("text")
    exc.good, exc.generator, exc.lock, exc.me = 1, iter_forever(), threading.Lock(), exc
    again = received(exc).exception
    assert vars(again) == {"good": 1}
    exc = ValueError("text")
    exc.me = exc
    again = received(exc).exception
    assert again.me is again


@pytest.mark.parametrize(
    "argument", [iter_forever(), threading.Lock(), Rude(encoding=SystemExit())]
)
def test_arguments_that_cannot_be_encoded_leave_the_readable_part(argument):
    arrived = received(ValueError(argument))
    assert (arrived.type, arrived.exception) == ("builtins.ValueError", None)


def test_an_exception_that_cannot_be_decoded_leaves_the_readable_part():
    exc = ValueError("text")
    exc.rude = Rude(decoding=SystemExit(3))
    arrived = received(exc)
    assert (arrived.message, arrived.exception) == ("text", None)


def test_exceptions_of_local_classes_come_home():
    class LocalError(Exception):
        pass

    assert type(received(LocalError("x")).exception) is LocalError


def test_only_exceptions_are_made_of_a_pickled_exception():
    error = pb.RpcError(reason=pb.ERROR_REASON_EXIT)
    error.exception.encoded.content_type = "application/x-python-pickle"
    for value in (5, Runs(rebuild.make_exception, os.system, ("exit",))):
        error.exception.encoded.data = pickle.dumps(value)
        assert codec.decode_error(error.SerializeToString()).reason.exception is None


def test_a_whitelist_decides_about_exceptions_as_well():
    data = codec.encode_exception(TargetError("x"), execution="finished")
    assert codec.decode_error(data, unpickle=only(only_decimals)).reason.exception is None

    def targets(module, name):
        if name == "TargetError":
            return TargetError
        return only_decimals(module, name)

    assert type(codec.decode_error(data, unpickle=only(targets)).reason.exception) is TargetError


def test_pickles_go_and_are_read_only_where_wanted():
    exc = ValueError("x")
    assert received(exc, pickles=False).exception is None
    data = codec.encode_exception(exc, execution="finished")
    assert codec.decode_error(data, pickles=False).reason.exception is None


def test_huge_texts_are_cut():
    exc = ValueError("h" * 20_000_000)
    data = codec.encode_exception(exc, execution="finished")
    assert len(data) < 200_000
    arrived = codec.decode_error(data).reason
    assert arrived.message.endswith("… [cut: 20,000,000 characters in all]")
    assert arrived.exception is None  # over its limit as well


@pytest.mark.parametrize("text", ["€" * 100_000, "\ud800", "a\0b", "", type("S", (str,), {})("s")])
def test_any_text_is_carried(text):
    assert received(ValueError(text)).type == "builtins.ValueError"


def bottom():
    raise ValueError("from the bottom")


def middle():
    return bottom()


def top():
    return middle()


def functions_in(text):
    import re

    return re.findall(r'File "[^"]+", line \d+, in (\S+)', text)


def run_by_genrpc(function):
    """Call as the executor does: from a file of the package."""
    path = os.path.join(os.path.dirname(os.path.dirname(codec.__file__)), "executor.py")
    code = compile("def execute(function):\n return function()", path, "exec")
    namespace = {}
    exec(code, namespace)
    return raised_inside(namespace["execute"], function)


def raised_inside(execute, function):
    exc = raised(execute, function)
    # The frame of `raised` is this test's own.
    return exc.with_traceback(exc.__traceback__.tb_next)


def test_the_traceback_starts_with_the_called_function():
    text = received(run_by_genrpc(top)).traceback
    assert functions_in(text) == ["top", "middle", "bottom"]
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("ValueError: from the bottom\n")


def test_frames_of_genrpc_below_the_function_stay():
    text = received(run_by_genrpc(lambda: codec.encode_error("nonsense", "unknown"))).traceback
    assert functions_in(text) == ["<lambda>", "encode_error"]


def test_a_missing_module_has_no_frames():
    arrived = received(run_by_genrpc(lambda: importlib.import_module("no_such_module")))
    assert functions_in(arrived.traceback) == ["<lambda>", "import_module", *IMPORT_FRAMES]
    exc = run_by_genrpc(functools.partial(importlib.import_module, "no_such_module"))
    arrived = received(exc, reason="undef")
    assert arrived.traceback == "ModuleNotFoundError: No module named 'no_such_module'\n"


IMPORT_FRAMES = ["_gcd_import", "_find_and_load", "_find_and_load_unlocked"]


def test_tracebacks_are_sent_only_where_wanted():
    assert received(run_by_genrpc(top), tracebacks=False).traceback == ""


def test_an_endless_recursion_is_told_in_short():
    def again():
        again()

    arrived = received(run_by_genrpc(again))
    assert arrived.type == "builtins.RecursionError"
    assert "Previous line repeated" in arrived.traceback


def test_a_very_deep_traceback_is_cut_in_the_middle():
    limit = sys.getrecursionlimit()
    source = "\n".join(
        f"def f{i}(n): return f{(i + 1) % 50}(n - 1) if n else {{}}[1]" for i in range(50)
    )
    namespace = {}
    exec(compile(source, "deep.py", "exec"), namespace)
    sys.setrecursionlimit(10_000)
    try:
        text = received(run_by_genrpc(lambda: namespace["f0"](4_000))).traceback
    finally:
        sys.setrecursionlimit(limit)
    assert "frames left out" in text
    assert text.endswith("KeyError: 1\n")
    assert len(text.encode()) <= 131_072 + 100


def chained():
    try:
        {}["missing"]
    except KeyError as exc:
        raise TargetError("outer") from exc


def during():
    try:
        {}["missing"]
    except KeyError:
        raise TargetError("outer")  # noqa: B904


def silent():
    try:
        {}["missing"]
    except KeyError:
        raise TargetError("outer") from None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (chained, "The above exception was the direct cause"),
        (during, "During handling of the above exception"),
    ],
)
def test_causes_are_told_before_what_they_caused(function, words):
    exc = run_by_genrpc(function)
    text = received(exc).traceback
    assert text.index("KeyError: 'missing'") < text.index(words) < text.index("TargetError: outer")
    error = pb.RpcError.FromString(codec.encode_exception(exc, execution="finished"))
    assert [cause.type for cause in error.exception.causes] == ["builtins.KeyError"]
    assert error.exception.causes[0].traceback.endswith("KeyError: 'missing'\n")


def test_suppressed_causes_are_not_told():
    assert "KeyError" not in received(run_by_genrpc(silent)).traceback


def test_causes_in_a_circle_and_without_an_end_are_cut():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert received(one).traceback.count("ValueError") == 2
    exc = ValueError("0")
    for number in range(10_000):
        outer = ValueError(str(number))
        outer.__cause__, exc = exc, outer
    error = pb.RpcError.FromString(codec.encode_exception(exc, execution="finished"))
    assert len(error.exception.causes) == 8
    while exc is not None:  # so that it is not freed recursively
        exc = exc.__cause__


def test_a_syntax_error_shows_where():
    text = received(raised(compile, "x = (1 +", "file.py", "exec")).traceback
    assert 'File "file.py", line 1' in text
    assert "x = (1 +" in text


def test_a_loader_that_fails_costs_the_frames_only():
    class Loader:
        def get_source(self, name):
            raise SystemExit("no source")

    namespace = {"__name__": "made_up", "__loader__": Loader()}
    exec(compile("def f(): return {}[1]", "made_up.py", "exec"), namespace)
    text = received(raised(namespace["f"])).traceback
    assert text.endswith("KeyError: 1\n")


class Interrupting(Exception):
    """Ctrl-C comes while it is looked at."""

    def __str__(self):
        raise KeyboardInterrupt


def interrupting_loader():
    class Loader:
        def get_source(self, name):
            raise KeyboardInterrupt

    namespace = {"__name__": "made_up", "__loader__": Loader()}
    exec(compile("def f(): return {}[1]", "interrupted.py", "exec"), namespace)
    return raised(namespace["f"])


def interrupting_late():
    exc = ValueError()
    exc.generator = iter_forever()  # so that each attribute is tried alone
    exc.later = Rude(encoding=KeyboardInterrupt())
    return exc


class Once:
    """Encoding it fails, and is interrupted the second time."""

    def __init__(self):
        self.times = 0

    def __reduce_ex__(self, protocol):
        self.times += 1
        raise KeyboardInterrupt if self.times > self.LIMIT else TypeError

    # As many as the pickles that a value is tried with before its failure is told.
    LIMIT = 3


@pytest.mark.parametrize(
    "make",
    [
        Interrupting,
        interrupting_loader,
        lambda: ValueError(Rude(encoding=KeyboardInterrupt())),
        interrupting_late,
    ],
)
def test_ctrl_c_goes_on_from_within_an_exception(make):
    exc = make()
    with pytest.raises(KeyboardInterrupt):
        codec.encode_exception(exc, execution="finished")


def test_ctrl_c_goes_on_from_within_a_failure():
    class Meta(type):
        @property
        def __module__(cls):
            raise KeyboardInterrupt

    hidden = Meta("Hidden", (), {"__reduce_ex__": Stubborn.__reduce_ex__})
    for value in (Once(), hidden()):
        with pytest.raises(KeyboardInterrupt):
            there(value)
    with pytest.raises(KeyboardInterrupt):
        back(Rude(decoding=Interrupting()))


def test_a_traceback_over_its_limit_is_cut_in_the_middle():
    exc = run_by_genrpc(top)
    vars(exc)["__notes__"] = [f"{number} " + "n" * 4_000 for number in range(100)]
    text = received(exc).traceback
    assert len(text.encode()) <= 131_072 + 100
    assert functions_in(text) == ["top", "middle", "bottom"]
    assert "[cut:" in text
    assert "\n99 nnn" in text


# ---------------------------------------------------------------- other failures


@pytest.mark.parametrize("reason", sorted(set(exceptions._REASONS) - {"exit", "undef"}))
@pytest.mark.parametrize("execution", ["not_started", "started", "finished", "unknown"])
def test_reasons_and_executions_survive(reason, execution):
    outcome = codec.decode_error(codec.encode_error(reason, execution, "a sentence"))
    assert (outcome, outcome.execution) == (BadRPC(reason), execution)
    assert outcome.message == "a sentence"


def test_every_reason_of_the_wire_has_a_word():
    numbers = set(pb.ErrorReason.values()) - {pb.ERROR_REASON_UNSPECIFIED}
    assert set(exceptions._REASONS.values()) == numbers


@pytest.mark.parametrize("reason", ["exit", "undef"])
def test_a_raise_and_a_missing_function_are_remote_exits(reason):
    data = codec.encode_exception(AttributeError("f"), execution="not_started", reason=reason)
    outcome = codec.decode_error(data)
    assert outcome == BadRPC(RemoteExit("builtins.AttributeError", "f"))
    assert outcome.execution == "not_started"


def test_an_exit_without_an_exception_is_readable():
    outcome = codec.decode_error(codec.encode_error("exit", "finished", "it raised"))
    assert outcome.reason == RemoteExit("builtins.Exception", "it raised")


def test_an_unknown_reason_word_is_refused():
    with pytest.raises(ValueError, match="'nonsense' is no reason"):
        codec.encode_error("nonsense", "unknown")


def test_reasons_of_later_protocols_are_unknown():
    data = pb.RpcError(reason=99, execution=98).SerializeToString()
    outcome = codec.decode_error(data)
    assert (outcome.reason, outcome.execution) == ("unknown", "unknown")


def test_broken_bytes_are_a_bad_result():
    assert codec.decode_error(b"\xff\xff\xff") == BadRPC("bad_result")


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_a_failure(data):
    assert isinstance(codec.decode_error(data), BadRPC)
