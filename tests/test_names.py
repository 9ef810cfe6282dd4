"""Names of nodes, destinations and targets, and durations."""

import decimal
import math
import string
import sys

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc import names
from genrpc.names import NO_KEY, Destination, parse_destination

NAMES = st.text(string.ascii_letters + string.digits + "_.-+~$!*äñ字", min_size=1, max_size=30)
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.sampled_from(["localhost", "a-b.example.org", "bücher.example"]),
)
PORTS = st.integers(1, 65535)
KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.binary(), st.tuples(st.text()))


class Text(str):
    """A subclass, as genrpc.Atom is one."""

    __slots__ = ()


# ---------------------------------------------------------------- destinations


@pytest.mark.parametrize(
    ("text", "node", "port"),
    [
        ("a@host", "a@host", None),
        ("a@host:5369", "a@host", 5369),
        ("a", "a@127.0.0.1", None),
        ("a:5369", "a@127.0.0.1", 5369),
        ("a@::1", "a@[::1]", None),
        ("a@[::1]", "a@[::1]", None),
        ("a@[::1]:5369", "a@[::1]", 5369),
        ("a@fe80::1%eth0", "a@[fe80::1%eth0]", None),
        (Text("a@host:1"), "a@host", 1),
    ],
)
def test_destination_is_taken_apart(text, node, port):
    destination = parse_destination(text)
    assert (destination.node, destination.port_hint) == (node, port)
    assert (destination.key, destination.host_hint) == (NO_KEY, None)
    assert type(destination.node) is str


def test_destination_with_a_key():
    destination = parse_destination(("a@host:7", ("k", 1)))
    assert (destination.node, destination.key, destination.port_hint) == ("a@host", ("k", 1), 7)


def test_none_is_a_key_like_any_other():
    assert parse_destination(("a", None)) != parse_destination("a")


def test_hints_are_no_part_of_the_identity():
    assert parse_destination("a@host:1") == parse_destination("a@host:2")
    assert len({parse_destination(text) for text in ("a@host", "a@host:1")}) == 1
    assert parse_destination("a@host") != parse_destination("b@host")


@pytest.mark.parametrize(
    "dest", [None, 5, b"a@host", ["a@host", "k"], ("a@host",), ("a", "b", "c"), (1, "k"), ("a", [])]
)
def test_what_is_no_destination_is_a_type_error(dest):
    with pytest.raises(TypeError, match="destination"):
        parse_destination(dest)


@pytest.mark.parametrize(
    "text",
    [
        *("", "@host", "a@", " a@host", "a@host ", "a b@host", "a@host\n", "a@b@c", "a/b@host"),
        *("a@host:", "a@host:0", "a@host:65536", "a@host:http", "a@host:+1", "a@host:\u0661"),
        *("a@host:00005369", "a@[::1", "a@[::1]5369", "a@[host]", "a@1:2:3", "a\0@host", "a,b"),
        *("a" * 300, "a@" + "h" * 300, "\ud800@host"),
    ],
)
def test_text_that_names_no_node_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"names no node|valid host|valid port|IPv6"):
        parse_destination(text)


@given(name=NAMES, host=HOSTS, port=PORTS)
def test_any_name_host_and_port_come_apart_as_they_were_put_together(name, host, port):
    destination = parse_destination(f"{name}@{host}:{port}")
    assert destination == Destination(f"{name}@{host}")
    assert destination.port_hint == port
    assert names.split_node(destination.node) == (name, host.strip("[]"))
    assert names.parse_address(f"{host}:{port}") == (host.strip("[]"), port)


@given(st.text())
def test_any_text_is_a_node_or_a_value_error(text):
    try:
        node = parse_destination(text).node
    except ValueError:
        return
    assert names.node_name(node) == node


# ---------------------------------------------------------------- nodes, hosts, addresses


def test_node_name_is_completed():
    assert names.node_name("a") == "a@127.0.0.1"
    assert names.node_name("a@::1") == "a@[::1]"


def test_node_name_has_no_port():
    with pytest.raises(ValueError, match="tcp_server_port"):
        names.node_name("a@host:5369")


def test_node_name_is_text():
    with pytest.raises(TypeError, match="name@host"):
        names.node_name(b"a@host")


@pytest.mark.parametrize("text", ["host", "::1", "[::1]", ":5", "host:", "[::1", "a@b:5"])
def test_address_needs_host_and_port(text):
    with pytest.raises(ValueError, match=r"port|host|IPv6"):
        names.parse_address(text)


def test_address_is_text():
    with pytest.raises(TypeError, match="host:port"):
        names.parse_address(("host", 5))


def test_host_is_given_without_brackets():
    assert names.check_host("[::1]") == "::1"
    assert names.bracketed("::1") == "[::1]"
    assert names.check_host("localhost") == names.bracketed("localhost") == "localhost"


def test_host_has_no_port():
    with pytest.raises(ValueError, match="without a port"):
        names.check_host("host:5")


def test_host_is_text():
    with pytest.raises(TypeError, match="text"):
        names.check_host(5)


# ---------------------------------------------------------------- keys


def test_destination_without_key_has_no_shard_key():
    assert names.shard_key(NO_KEY) == ""
    assert repr(NO_KEY) == "NO_KEY"


def test_short_shard_keys_are_readable():
    assert names.shard_key("orders") == "str:'orders'"
    assert names.shard_key(7) == "int:7"


@given(KEYS, KEYS)
def test_different_keys_have_different_shard_keys(one, other):
    same = type(one) is type(other) and repr(one) == repr(other)
    assert (names.shard_key(one) == names.shard_key(other)) is same


@given(KEYS)
def test_shard_keys_are_short_and_can_be_sent(key):
    text = names.shard_key(key)
    assert text
    assert len(text) <= 72
    text.encode("utf-8")


def test_repr_with_a_lone_surrogate_can_be_sent():
    class Key:
        def __repr__(self) -> str:
            return "\ud800"

    assert names.shard_key(Key()).startswith("sha256:")


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("module", "function", "target"),
    [
        ("math", "sqrt", ("math", "sqrt", "")),
        ("os.path", "join", ("os.path", "join", "")),
        (("app", "1.2"), "run", ("app", "run", "1.2")),
        (("app", 3), "run", ("app", "run", "3")),
        ("app", "Class.method", ("app", "Class.method", "")),
        (Text("math"), Text("sqrt"), ("math", "sqrt", "")),
        ("übung", "größe", ("übung", "größe", "")),
    ],
)
def test_targets_are_checked_and_taken_apart(module, function, target):
    assert names.check_target(module, function) == target
    assert {type(part) for part in names.check_target(module, function)} == {str}


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("", "f"),
        ("m", ""),
        ("m\0", "f"),
        ("m", "f\0"),
        (" m", "f"),
        ("m", "f "),
        (".m", "f"),
        ("m..n", "f"),
        ("a-b", "f"),
        ("m", "a.b.c"),
        ("m", ".f"),
        ("m", "<lambda>"),
        (("m", ""), "f"),
        (("m", "1\0"), "f"),
        (("m", "\ud800"), "f"),
    ],
)
def test_what_names_no_target_is_a_value_error(module, function):
    with pytest.raises(ValueError, match=r"names no|is no version"):
        names.check_target(module, function)


@pytest.mark.parametrize(
    ("module", "function"),
    [(None, "f"), (math, "sqrt"), ("m", None), ("m", len), (("m",), "f"), ((1, "1"), "f")],
)
def test_what_is_no_target_is_a_type_error(module, function):
    with pytest.raises(TypeError, match="named by text"):
        names.check_target(module, function)


def test_version_none_is_a_mistake():
    with pytest.raises(TypeError, match="version"):
        names.check_target(("m", None), "f")


def test_full_width_letters_are_not_folded():
    wide = "\uff4dath"
    assert names.check_target(wide, "sqrt")[0] == wide
    assert names.check_target(wide, "sqrt")[0] != "math"


def test_entries_are_modules_or_functions():
    assert names.check_entry("os.path") == "os.path"
    assert names.check_entry("app:Class.method") == "app:Class.method"


@pytest.mark.parametrize("entry", ["", "a-b", "m:", ":f", "m:a.b.c", "m:f:g"])
def test_wrong_entries_are_value_errors(entry):
    with pytest.raises(ValueError, match="names no"):
        names.check_entry(entry)


def test_entry_is_text():
    with pytest.raises(TypeError, match="module:function"):
        names.check_entry(5)


# ---------------------------------------------------------------- the program


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("/srv/my_worker.py", "my_worker"),
        ("tool", "tool"),
        ("two words.py", "two_words"),
        ("résumé.py", "r_sum"),
        ("/site-packages/pkg/__main__.py", "pkg"),
        ("", "python"),
        ("-c", "python"),
        ("-m", "python"),
        ("…", "python"),
    ],
)
def test_program_is_named_after_its_script(monkeypatch, argument, name):
    monkeypatch.setattr(sys, "argv", [argument])
    assert names.program_name() == name
    assert names.node_name(names.program_name()) == f"{name}@127.0.0.1"


def test_embedded_interpreter_without_arguments_has_a_name(monkeypatch):
    monkeypatch.delattr(sys, "argv")
    assert names.program_name() == "python"


# ---------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (5, 5.0),
        (0.25, 0.25),
        (math.inf, None),
        (10**400, None),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3.0),
        (decimal.Decimal("1.5"), 1.5),
    ],
)
def test_timeouts_are_seconds_or_for_ever(value, seconds):
    assert names.check_timeout(value) == seconds


@pytest.mark.parametrize("value", [True, "5", b"5", [5], 1j, object()])
def test_timeout_that_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="send_timeout is a number of seconds"):
        names.check_timeout(value, "send_timeout")


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf, -(10**400)])
def test_timeout_below_zero_or_nan_is_a_value_error(value):
    with pytest.raises(ValueError, match="timeout is a number of seconds, 0 or more"):
        names.check_timeout(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("5", 5.0), ("7.5", 7.5), ("500ms", 0.5), ("2s", 2.0), ("10m", 600.0), ("1h", 3600.0)),
        *(("0", 0.0), (".5", 0.5), ("1.", 1.0), ("none", None), ("None", None)),
    ],
)
def test_durations_of_the_command_line(text, seconds):
    assert names.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "5 s", "1d", "s", ".", "nan", "inf", "1e3", "٣"])
def test_what_is_no_duration_is_a_value_error(text):
    with pytest.raises(ValueError, match="is no duration"):
        names.parse_duration(text)
