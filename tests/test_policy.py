"""What may be called, and what a pickle may reach on a node with a whitelist."""

import builtins
import collections
import contextlib
import copyreg
import datetime
import decimal
import fractions
import functools
import importlib
import math
import operator
import os
import pathlib
import pickle
import sys
import types
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc import policy as policy_package
from genrpc.errors import BadRPC, BadTCP, ConfigurationError, Ok, RemoteExit
from genrpc.policy import Policy
from genrpc.settings import Settings

SOURCE = '''
import os, subprocess, functools, enum, dataclasses
from os import getcwd
from math import sqrt
from json import dumps

def public(x=1): return ("public", x)
def _private(): return "private"
alias = _private
cached = functools.lru_cache(public)
partial = functools.partial(os.system, "true")
number = 5

class Holder:
    system = staticmethod(os.system)
    run = subprocess.run
    def method(self): return "method"
    @staticmethod
    def static(x=0): return ("static", x)
    @classmethod
    def made(cls): return cls()
    @property
    def value(self): return 1
    def _hidden(self): ...
    class Inner: ...

class Child(Holder): ...
class Foreign(subprocess.Popen): ...
class _Secret: ...
class Meta(type): ...

class Basket(list): ...
class Bag:
    """Keeps what is added to it where everybody sees it."""
    seen = []
    @classmethod
    def add(cls, item): cls.seen.append(item)
    @classmethod
    def append(cls, item): cls.seen.append(item)
class Echo:
    def __getattr__(self, name): return self.__dict__["all"]
class Slotted:
    __slots__ = ("x",)
class Given(str):
    def __getnewargs_ex__(self): return (str(self),), {}
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Point:
    x: int
    y: int
class Registry(dict):
    def __call__(self): ...
registry = Registry()
'''


def make_module(name: str, source: str = SOURCE, **more: object) -> types.ModuleType:
    """A module of the test's own, importable under `name`."""
    module = types.ModuleType(name)
    exec(source, module.__dict__)
    vars(module).update(more)
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == "builtins" and isinstance(value, type):
            value.__module__ = name
    sys.modules[name] = module
    return module


EXPORTED = ["public", "Holder", "os", "subprocess", "getcwd", "sqrt", "_private"]
PLAIN = make_module("policy_plain")
OFFERS = make_module("policy_offers", __all__=EXPORTED)


def outcome(policy: Policy, name: str, function: str) -> bool:
    """What a node does: screen, import, look up, ask again."""
    if not policy.screen(name, function):
        return False
    module = importlib.import_module(name)
    target: object = module
    for part in function.split("."):
        target = getattr(target, part)
    return policy.admits(module, name, function, target)


# ---------------------------------------------------------------- making


def test_policy_comes_from_the_settings() -> None:
    settings = Settings(rpc_module_control="whitelist", rpc_module_list=["math", "os:getcwd"])
    assert repr(Policy.of(settings)) == "Policy('whitelist', ['math', 'os:getcwd'])"


@pytest.mark.parametrize("control", ["", "whitelisted", "Whitelist", "none"])
def test_misspelt_control_is_an_error(control: str) -> None:
    with pytest.raises(ConfigurationError, match="rpc_module_control"):
        Policy(control, ["math"])


def test_entry_that_is_no_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="module"):
        Policy("whitelist", ["math "])


def test_listed_modules_are_those_of_a_whitelist() -> None:
    entries = ["math", "os:getcwd", "os:getpid", "json"]
    assert Policy("whitelist", entries).listed_modules() == ["json", "math", "os"]
    assert Policy("blacklist", entries).listed_modules() == []
    assert Policy("disabled", entries).listed_modules() == []


def test_only_a_whitelist_restricts_pickles() -> None:
    assert Policy("whitelist", []).restricts_pickles
    assert not Policy("blacklist", ["os"]).restricts_pickles
    assert not Policy("disabled", []).restricts_pickles


# ---------------------------------------------------------------- disabled


def test_disabled_policy_allows_everything() -> None:
    policy = Policy("disabled", ["math"])
    assert outcome(policy, "os", "system")
    assert outcome(policy, "policy_plain", "_private")


@pytest.mark.parametrize("control", ["disabled", "whitelist", "blacklist"])
@pytest.mark.parametrize("function", ["node", "ping"])
def test_node_and_ping_are_always_allowed(control: str, function: str) -> None:
    policy = Policy(control, ["genrpc"] if control == "blacklist" else [])
    assert policy.screen("genrpc", function)
    assert policy.admits(types.ModuleType("genrpc"), "genrpc", function, len)


def test_rest_of_genrpc_has_no_exemption() -> None:
    assert not Policy("whitelist", ["math"]).screen("genrpc", "apply")
    assert not Policy("blacklist", ["genrpc"]).screen("genrpc", "apply")


# ---------------------------------------------------------------- whitelist


WHITELIST = Policy(
    "whitelist",
    [
        "math",
        "operator",
        "random",
        "os.path",
        "policy_plain",
        "policy_offers",
        "policy_only:public",
    ],
)
ONLY = make_module("policy_only")


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("math", "sqrt"),
        ("operator", "add"),
        ("random", "random"),
        ("random", "randint"),
        ("random", "Random.randint"),
        ("os.path", "join"),
        ("policy_plain", "public"),
        ("policy_plain", "alias"),
        ("policy_plain", "cached"),
        ("policy_plain", "Holder.method"),
        ("policy_plain", "Holder.static"),
        ("policy_plain", "Holder.made"),
        ("policy_plain", "Child.static"),
        ("policy_offers", "public"),
        ("policy_offers", "Holder"),
        ("policy_offers", "Holder.static"),
        ("policy_only", "public"),
    ],
)
def test_whitelist_admits(module: str, function: str) -> None:
    assert outcome(WHITELIST, module, function)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("policy_plain", "os"),
        ("policy_plain", "getcwd"),
        ("policy_plain", "sqrt"),
        ("policy_plain", "dumps"),
        ("policy_plain", "number"),
        ("policy_plain", "partial"),
        ("policy_plain", "registry"),
        ("policy_plain", "Point"),
        ("policy_plain", "os.system"),
        ("policy_plain", "subprocess.Popen"),
        ("policy_plain", "Holder.system"),
        ("policy_plain", "Child.system"),
        ("policy_plain", "Holder.run"),
        ("policy_plain", "Holder.value"),
        ("policy_plain", "Holder.Inner"),
        ("policy_plain", "Holder.mro"),
        ("policy_plain", "Foreign.communicate"),
        ("policy_plain", "public.__globals__"),
        ("policy_plain", "registry.clear"),
        ("policy_offers", "os"),
        ("policy_offers", "getcwd"),
        ("policy_offers", "sqrt"),
        ("policy_offers", "subprocess.run"),
        ("policy_offers", "Holder.system"),
        ("policy_offers", "_private"),
        ("policy_offers", "cached"),
        ("policy_offers", "Child"),
        ("policy_offers", "Child.static"),
        ("policy_only", "alias"),
        ("policy_only", "Holder.static"),
        ("os", "getcwd"),
        ("builtins", "len"),
    ],
)
def test_whitelist_refuses(module: str, function: str) -> None:
    assert not outcome(WHITELIST, module, function)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("math ", "sqrt"),
        (" math", "sqrt"),
        ("MATH", "sqrt"),
        ("math\0", "sqrt"),
        ("\uff4dath", "sqrt"),
        ("math.os", "system"),
        ("math.", "sqrt"),
        ("", "sqrt"),
        (".", "system"),
        ("math", ""),
        ("math", "."),
        ("math", "sqrt "),
        ("math", "sqrt\0"),
        ("math", "__loader__"),
        ("math", "__loader__.load_module"),
        ("math", "a.b.c"),
        ("math", "sqrt.__call__"),
        ("policy_only:public", "other"),
        ("policy_only", "public:other"),
        ("policy_only", "public.x"),
        ("genrpc", "ping "),
    ],
)
def test_look_alikes_and_dots_are_screened_out(module: str, function: str) -> None:
    assert not WHITELIST.screen(module, function)


def test_refused_module_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_import(name: str, *_: object) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(importlib, "import_module", no_import)
    monkeypatch.setattr(builtins, "__import__", no_import)
    screened = WHITELIST.screen("antigravity", "f")
    with pytest.raises(pickle.UnpicklingError):
        WHITELIST.find_class("antigravity", "f")
    with pytest.raises(pickle.UnpicklingError):
        WHITELIST.unpickle(b"cantigravity\nf\n.")
    monkeypatch.undo()
    assert not screened


@pytest.mark.parametrize("function", ["_private", "getcwd", "Holder.system", "partial"])
def test_listed_function_is_allowed_whatever_it_is(function: str) -> None:
    assert outcome(Policy("whitelist", [f"policy_plain:{function}"]), "policy_plain", function)


@pytest.mark.parametrize("function", ["os.system", "registry.clear"])
def test_even_a_listed_function_is_not_reached_through_what_is_no_class(function: str) -> None:
    assert not outcome(Policy("whitelist", [f"policy_plain:{function}"]), "policy_plain", function)


def test_all_that_is_a_text_offers_nothing() -> None:
    make_module("policy_text", __all__="public")
    assert not outcome(Policy("whitelist", ["policy_text"]), "policy_text", "public")


def test_target_that_is_not_the_method_of_that_name_is_refused() -> None:
    assert not WHITELIST.admits(PLAIN, "policy_plain", "Holder.static", os.system)
    assert not WHITELIST.admits(PLAIN, "policy_plain", "Holder.missing", PLAIN.public)


def test_bound_method_of_a_foreign_object_is_refused() -> None:
    vars(PLAIN)["join"] = ",".join
    assert not outcome(WHITELIST, "policy_plain", "join")


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_other_name_passes_a_whitelist(module: str, function: str) -> None:
    assert not Policy("whitelist", ["math:sqrt"]).screen(module, function)


# ---------------------------------------------------------------- blacklist


BLACKLIST = Policy("blacklist", ["os", "subprocess", "policy_only:public", "policy_plain:Holder"])


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("os", "getcwd"),
        ("os.path", "join"),
        ("posix", "system"),
        ("nt", "system"),
        ("_posixsubprocess", "fork_exec"),
        ("subprocess", "run"),
        ("policy_only", "public"),
        ("policy_plain", "Holder"),
        ("policy_plain", "Holder.method"),
    ],
)
def test_blacklist_screens_out(module: str, function: str) -> None:
    assert not BLACKLIST.screen(module, function)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("policy_plain", "getcwd"),
        ("policy_plain", "partial"),
        ("policy_offers", "Holder.system"),
        ("policy_offers", "Holder.run"),
        ("policy_offers", "os.system"),
        ("policy_offers", "Foreign.communicate"),
        ("shutil", "os.system"),
    ],
)
def test_blacklisted_function_is_refused_by_another_road(module: str, function: str) -> None:
    assert BLACKLIST.screen(module, function)
    assert not outcome(BLACKLIST, module, function)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("math", "sqrt"),
        ("policy_plain", "public"),
        ("policy_plain", "_private"),
        ("policy_plain", "sqrt"),
        ("policy_plain", "dumps"),
        ("policy_only", "alias"),
        ("policy_offers", "Holder"),
        ("policy_offers", "Holder.method"),
        ("policy_offers", "registry"),
        ("osmium", "f"),
        ("random", "random"),
    ],
)
def test_blacklist_leaves_the_rest_alone(module: str, function: str) -> None:
    if module == "osmium":
        assert BLACKLIST.screen(module, function)
    else:
        assert outcome(BLACKLIST, module, function)


def test_decorators_do_not_hide_a_blacklisted_function() -> None:
    vars(PLAIN)["wrapped"] = functools.lru_cache(functools.partial(functools.partial(os.getcwd)))
    assert not outcome(BLACKLIST, "policy_plain", "wrapped")


def test_single_function_is_refused_by_another_road() -> None:
    assert not outcome(Policy("blacklist", ["os:getcwd"]), "policy_plain", "getcwd")
    assert outcome(Policy("blacklist", ["os:system"]), "policy_plain", "getcwd")


def test_module_known_under_two_names_is_refused_under_both() -> None:
    policy = Policy("blacklist", ["posixpath"])
    assert not outcome(policy, "os.path", "join")


def test_blacklisted_builtins_do_not_take_all_functions_with_them() -> None:
    policy = Policy("blacklist", ["builtins"])
    assert outcome(policy, "policy_plain", "public")
    assert outcome(policy, "policy_offers", "Holder")
    assert not outcome(policy, "builtins", "len")
    vars(PLAIN)["join"] = ",".join
    assert not outcome(policy, "policy_plain", "join")


def test_object_with_odd_attributes_is_judged_by_its_class() -> None:
    class Odd:
        def __call__(self) -> None: ...

    odd = Odd()
    vars(odd).update(__wrapped__=odd, __qualname__=5)
    assert BLACKLIST.admits(PLAIN, "policy_plain", "odd", odd)
    Odd.__module__ = "subprocess"
    assert not BLACKLIST.admits(PLAIN, "policy_plain", "odd", odd)


# ---------------------------------------------------------------- pickles: what is let in


LETS = Policy("whitelist", ["policy_plain", "math", "operator", "policy_only:Point"])


def sent(value: object, protocol: int = 5) -> object:
    """The value as a node with a whitelist decodes it."""
    buffers: list[pickle.PickleBuffer] = []
    callback = buffers.append if protocol == 5 else None
    head = pickle.dumps(value, protocol, buffer_callback=callback)
    return LETS.unpickle(head, [memoryview(buffer) for buffer in buffers])


DATA = [
    None,
    [1, 1 << 80, 1.5, 1j, True, "ü", b"b", bytearray(b"b"), (), {}, {1: [2]}],
    [{1, 2}, frozenset({1}), range(3), slice(1, 2), ..., NotImplemented],
    [int, dict, ValueError],
    collections.OrderedDict(a=1),
    collections.deque([1, 2], 5),
    collections.Counter("aab"),
    datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    [datetime.date(2024, 1, 2), datetime.time(1), datetime.timedelta(1)],
    [decimal.Decimal("1.50"), fractions.Fraction(1, 3)],
    [uuid.UUID(int=5), uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe)],
    [pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("a"), pathlib.Path("b")],
    [BadRPC("timeout"), BadTCP("closed"), Ok(1), RemoteExit("t", "m", "tb", None)],
    [PLAIN.Point(1, 2), PLAIN.Holder, PLAIN.Holder.Inner, PLAIN.Colour.RED, PLAIN.Basket([1, 2])],
    [math.sqrt, PLAIN.public, PLAIN.Holder.static, operator.add],
]


@pytest.mark.parametrize("value", DATA, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("protocol", [4, 5])
def test_data_and_listed_classes_are_let_in(value: object, protocol: int) -> None:
    assert sent(value, protocol) == value


def test_attributes_and_slots_arrive() -> None:
    basket, slotted = PLAIN.Basket([1]), PLAIN.Slotted()
    basket.label = slotted.x = "x"
    found: Any = sent([basket, slotted])
    assert (found[0], found[0].label, found[1].x) == ([1], "x", "x")


def test_every_opcode_that_makes_an_object_works() -> None:
    point = PLAIN.Point(1, 2)
    assert sent(PLAIN.Given("x")) == PLAIN.Given("x")
    assert LETS.unpickle(b"(K\x01K\x02ipolicy_plain\nPoint\n.") == point
    assert LETS.unpickle(b"(cpolicy_plain\nPoint\nK\x01K\x02o.") == point


def test_sets_and_dicts_of_watched_pickles_arrive() -> None:
    point = PLAIN.Point(1, 2)
    value = [point, {1, 2}, {"a": 1}, {"a": 1, "b": 2}, [1], collections.deque([1])]
    assert sent(value) == value
    bag = pickle.dumps([point, collections.deque([1, 2, 3])], 5)
    assert LETS.unpickle(bag) == [point, collections.deque([1, 2, 3])]


def test_exceptions_are_let_in() -> None:
    error = sent(KeyError("k"))
    assert isinstance(error, KeyError)
    assert error.args == ("k",)


def test_large_buffers_stay_where_they_are() -> None:
    buffer = bytearray(100_000)
    out_of_band: list[pickle.PickleBuffer] = []
    head = pickle.dumps(pickle.PickleBuffer(buffer), 5, buffer_callback=out_of_band.append)
    found = LETS.unpickle(head, [buffer])
    assert found is buffer


def test_builders_of_the_caller_are_called() -> None:
    builders = {("codec", "build"): lambda *args: ("built", args)}
    head = b"ccodec\nbuild\n(K\x01K\x02tR."
    assert LETS.unpickle(head, builders=builders) == ("built", (1, 2))
    with pytest.raises(pickle.UnpicklingError):
        LETS.unpickle(head)


def test_path_of_python_3_13_is_let_in() -> None:
    path = LETS.unpickle(b"cpathlib._local\nPurePosixPath\n(\x8c\x01atR.")
    assert path == pathlib.PurePosixPath("a")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.dates()
        | st.uuids()
        | st.decimals(allow_nan=False)
        | st.fractions(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=8,
    )
)
def test_any_data_survives(value: object) -> None:
    assert sent(value) == value


# ---------------------------------------------------------------- pickles: what is kept out


def refused(head: bytes, policy: Policy = LETS) -> str:
    with pytest.raises(pickle.UnpicklingError) as caught:
        policy.unpickle(head)
    return str(caught.value)


def named(module: str, name: str) -> bytes:
    """A pickle of the object of this name, with protocol 4, which allows dots."""
    parts = (part.encode() for part in (module, name))
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(p)]) + p for p in parts) + b"\x93."


FORBIDDEN = [
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "type"),
    ("builtins", "map"),
    ("builtins", "property"),
    ("builtins", "memoryview"),
    ("builtins", "__build_class__"),
    ("builtins", "dict.fromkeys"),
    ("__builtin__", "eval"),
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("sys", "modules"),
    ("importlib", "import_module"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("_codecs", "encode"),
    ("collections", "defaultdict"),
    ("collections", "namedtuple"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("enum", "Enum"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("operator", "itemgetter"),
    ("operator", "__call__"),
    ("numpy", "load"),
    ("numpy", "ndarray.tofile"),
    ("numpy.f2py", "compile"),
    ("genrpc", "apply"),
    ("genrpc.errors", "_rebuilt"),
    ("genrpc.codec", "decode_value"),
    ("dill._dill", "_create_function"),
    ("math", "__loader__.load_module"),
    ("math", "foo.bar"),
    ("math", "sqrt.__self__"),
    ("math", "missing"),
    ("math\0", "sqrt"),
    ("policy_plain", "os"),
    ("policy_plain", "os.system"),
    ("policy_plain", "subprocess.Popen"),
    ("policy_plain", "getcwd"),
    ("policy_plain", "dumps"),
    ("policy_plain", "partial"),
    ("policy_plain", "number"),
    ("policy_plain", "_private"),
    ("policy_plain", "_Secret"),
    ("policy_plain", "Meta"),
    ("policy_plain", "Holder.system"),
    ("policy_plain", "Holder._hidden"),
    ("policy_plain", "Holder.__subclasses__"),
    ("policy_plain", "Holder.__init__.__globals__"),
    ("policy_plain", "public.__globals__"),
    ("policy_plain", "registry"),
    ("policy_plain", ""),
    ("policy_only", "Holder"),
    ("policy_only", "public"),
    ("policy_missing", "f"),
    ("", "f"),
]


@pytest.mark.parametrize(("module", "name"), FORBIDDEN)
def test_forbidden_name_is_refused(module: str, name: str) -> None:
    assert "whitelist" in refused(named(module, name))
    with pytest.raises(pickle.UnpicklingError):
        LETS.find_class(module, name)


def test_listed_module_that_cannot_be_imported_is_refused() -> None:
    refused(named("policy_missing", "f"), Policy("whitelist", ["policy_missing"]))


@pytest.mark.parametrize("entry", ["builtins:eval", "operator:attrgetter", "policy_plain:registry"])
def test_listed_function_may_be_sent_but_neither_called_nor_changed(entry: str) -> None:
    module, _, name = entry.partition(":")
    policy = Policy("whitelist", [entry])
    if name == "attrgetter":
        refused(named(module, name), policy)
        return
    assert callable(policy.unpickle(named(module, name)))
    refused(named(module, name)[:-1] + b"(\x8c\x011tR.", policy)
    refused(named(module, name)[:-1] + b"K\x01K\x02s.", policy)
    refused(named(module, name)[:-1] + b"(K\x01K\x02u.", policy)


def test_everything_but_data_is_refused_without_a_whitelist() -> None:
    for policy in (Policy("disabled", []), Policy("blacklist", ["policy_plain"])):
        refused(named("policy_plain", "Point"), policy)
        assert policy.unpickle(pickle.dumps([1, datetime.date(2024, 1, 1)])) == [
            1,
            datetime.date(2024, 1, 1),
        ]


def test_name_in_a_refusal_is_cut() -> None:
    assert len(refused(b"cm" + b"x" * 100_000 + b"\nf\n.")) < 500


def test_find_class_gives_immutable_data_types_only() -> None:
    assert LETS.find_class("datetime", "date") is datetime.date
    assert LETS.find_class("builtins", "KeyError") is KeyError
    for module, name in [
        ("collections", "Counter"),
        ("uuid", "UUID"),
        ("policy_plain", "Point"),
        ("policy_plain", "public"),
        ("math", "sqrt"),
        ("numpy", "dtype"),
    ]:
        with pytest.raises(pickle.UnpicklingError):
            LETS.find_class(module, name)


# Attacks by opcodes. `c` finds, `R`, `i` and `o` call, `b` changes.
PUBLIC, POINT = b"cpolicy_plain\npublic\n", b"cpolicy_plain\nPoint\n"
EMPTY_ECHO = b"cpolicy_plain\nEcho\n)\x81"
ATTACKS = {
    "call a function": PUBLIC + b")R.",
    "call a C function": b"cmath\nsqrt\n(K\x04tR.",
    "call by INST": b"(ipolicy_plain\npublic\n.",
    "call by OBJ": b"(" + PUBLIC + b"o.",
    "make by NEWOBJ what is no type": PUBLIC + b")\x81.",
    "make by NEWOBJ_EX what is no type": PUBLIC + b")}\x92.",
    "set a function's defaults": PUBLIC + b"N}\x8c\x0c__defaults__K\x63\x85s\x86b.",
    "set a function's attribute": PUBLIC + b"}\x8c\x01xK\x01sb.",
    "set a class's attribute": POINT + b"N}\x8c\x01xK\x01s\x86b.",
    "set a library class's attribute": b"ccollections\nCounter\nN}\x8c\x01xK\x01s\x86b.",
    "set a builtin's attribute": b"cmath\nsqrt\nN}\x8c\x01xK\x01s\x86b.",
    "change a member of an enum": b"cpolicy_plain\nColour\n(K\x01tR}\x8c\x07_value_K\x02sb.",
    "append to a class": b"cpolicy_plain\nBag\nK\x01a.",
    "append much to a class": b"cpolicy_plain\nBag\n(K\x01K\x02e.",
    "add to a class": b"cpolicy_plain\nBag\n(K\x01\x90.",
    "append by what __getattr__ gives": EMPTY_ECHO + b"}\x8c\x03all" + PUBLIC + b"sbK\x01a.",
    "add by an attribute": EMPTY_ECHO + b"}\x8c\x03add" + PUBLIC + b"sb(K\x01\x90.",
    "set state by an attribute": EMPTY_ECHO
    + b"}\x8c\x0c__setstate__"
    + PUBLIC
    + b"sb}\x8c\x01xK\x01sb\x8c\x04done\x85.",
    "persistent id": b"Pid\n.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_by_opcode_changes_nothing(attack: str) -> None:
    before = PLAIN.public(), PLAIN.Colour.RED.value, list(PLAIN.Bag.seen), dir(PLAIN.Point)
    try:
        found = LETS.unpickle(ATTACKS[attack])
    except (pickle.UnpicklingError, AttributeError):
        found = None
    else:
        # An attribute of that name is data like any other, as long as nobody calls it.
        assert attack == "set state by an attribute"
    assert "public" not in repr(found)
    assert not hasattr(collections.Counter, "x")
    assert not hasattr(PLAIN.public, "x")
    after = PLAIN.public(), PLAIN.Colour.RED.value, list(PLAIN.Bag.seen), dir(PLAIN.Point)
    assert after == before


def test_extension_registry_is_not_used() -> None:
    copyreg.add_extension("os", "system", 7)
    try:
        assert pickle.loads(b"\x80\x02\x82\x07.") is os.system  # now it is in the cache
        assert "registry" in refused(b"\x80\x02cpolicy_plain\nPoint\n\x82\x07.")
        refused(b"\x80\x02\x82\x07.")
    finally:
        copyreg.remove_extension("os", "system", 7)


@given(st.binary(max_size=60))
def test_noise_finds_nothing(noise: bytes) -> None:
    with contextlib.suppress(Exception):
        found = LETS.unpickle(b"\x80\x04" + noise + b".")
        assert not callable(found)


def test_package_offers_its_names() -> None:
    assert set(policy_package.__all__) <= set(vars(policy_package))
