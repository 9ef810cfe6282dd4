"""numpy's arrays in the pickles of a node with a whitelist."""

import importlib
import pickle
import types
from typing import Any

import pytest

from genrpc.policy import Policy, arrays

numpy = pytest.importorskip("numpy")

POLICY = Policy("whitelist", [])


def sent(value: object, protocol: int = 5) -> Any:
    """The value as a node with a whitelist decodes it."""
    buffers: list[pickle.PickleBuffer] = []
    callback = buffers.append if protocol == 5 else None
    head = pickle.dumps(value, protocol, buffer_callback=callback)
    return POLICY.unpickle(head, [memoryview(buffer) for buffer in buffers])


ARRAYS = [
    numpy.arange(6, dtype="i8"),
    numpy.arange(6, dtype=">i4").reshape(2, 3),
    numpy.arange(6.0).reshape(2, 3).T,
    numpy.arange(24).reshape(2, 3, 4)[:, ::2, 1:],
    numpy.array(5),
    numpy.zeros((0, 3)),
    numpy.array([True, False]),
    numpy.array(["a", "bcd"]),
    numpy.array(["a"], dtype=">U3"),
    numpy.array([b"ab"]),
    numpy.array(["2024-01-02"], dtype="M8[D]"),
    numpy.array([5], dtype="m8[25ns]"),
    numpy.array([1j], dtype="c8"),
    numpy.array([b"ab"], dtype="V2"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("protocol", [4, 5])
def test_array_is_let_in(array: Any, protocol: int) -> None:
    found = sent([array], protocol)[0]
    assert type(found) is numpy.ndarray
    # By protocol 4, numpy gives data in this machine's byte order, whatever it was.
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    numpy.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "scalar", [numpy.float64(1.5), numpy.int8(-1), numpy.str_("x"), numpy.datetime64("2024", "Y")]
)
def test_scalar_is_let_in(scalar: object) -> None:
    found = sent(scalar)
    assert type(found) is type(scalar)
    assert found == scalar


@pytest.mark.parametrize("array", [numpy.array([object]), numpy.zeros(1, dtype="i4,f8")], ids=repr)
def test_array_of_objects_or_structures_is_refused(array: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="dtype"):
        sent(array)


GENUINE = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("V8", (3, "|", None, ("a",), {"a": (numpy.dtype("O"), 0)}, 8, 1, 0)),
        ("V8", (3, "|", None, None, None, 8, 1, 63)),
        ("U2", (3, "<", None, None, None, 8000, 4, 8)),
        ("i8", (3, "<", (numpy.dtype("O"), (1,)), None, None, -1, -1, 0)),
        ("i8", (3, "x", None, None, None, -1, -1, 0)),
        ("i8", [*GENUINE]),
        ("i8", (*GENUINE, {})),
        ("i8", GENUINE[:-1]),
        ("i8", (*GENUINE[:-1], 1.0)),
        ("i8", None),
        ("M8", (4, "<", None, None, None, -1, -1, 0, ({}, (b"D", 0, 1, 1)))),
        ("M8", (4, "<", None, None, None, -1, -1, 0, ({}, (b"D]i8", 1, 1, 1)))),
        ("M8", (4, "<", None, None, None, -1, -1, 0, ({"a": 1}, (b"D", 1, 1, 1)))),
        ("M8", (4, "<", None, None, None, -1, -1, 0, None)),
    ],
)
def test_forged_state_of_a_dtype_is_refused(code: str, state: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="numpy would"):
        arrays.check_state(numpy.dtype(code), state)


@pytest.mark.parametrize(
    "state",
    [
        (1, (2,), numpy.dtype("u1"), False, b"abc"),
        (1, (-1, -3), numpy.dtype("u1"), False, b"abc"),
        (1, (2**62, 4), numpy.dtype("i8"), False, b""),
        (1, (True,), numpy.dtype("u1"), False, b"a"),
        (1, [1], numpy.dtype("u1"), False, b"a"),
        (1, (1,), numpy.dtype("u1"), False, ["a"]),
        (1, (1,), "u1", False, b"a"),
        [1, (1,), numpy.dtype("u1"), False, b"a"],
        (1,),
    ],
)
def test_forged_state_of_an_array_is_refused(state: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="numpy would"):
        arrays.check_state(numpy.empty(0), state)


def test_other_objects_of_numpy_get_no_state() -> None:
    with pytest.raises(pickle.UnpicklingError, match="numpy would"):
        arrays.check_state(numpy.random.RandomState(), {})


def test_dtype_of_a_pickle_is_its_own_copy() -> None:
    """A state must not reach the dtype that the whole process shares."""
    found = sent([numpy.dtype(">i8"), 1])
    assert found == [numpy.dtype(">i8"), 1]
    assert numpy.dtype("i8").isnative


def test_internals_are_found_in_numpy_1_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> object:
        asked.append(name)
        return types.SimpleNamespace(__version__="1.26.4")

    monkeypatch.setattr(importlib, "import_module", find)
    arrays._internals("multiarray")
    assert asked[-1] == "numpy.core.multiarray"


RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n("
FROMBUFFER = b"cnumpy._core.numeric\n_frombuffer\n("
ATTACKS = {
    "memory": b"cnumpy\nndarray\n(K\x64tR.",
    "memory by reconstruct": RECONSTRUCT + b"cnumpy\nndarray\n(K\x64t\x8c\x02u1tR.",
    "class of another kind": RECONSTRUCT + b"cfractions\nFraction\n" + b"(K\x00tC\x01btR.",
    "objects": b"cnumpy\ndtype\n(\x8c\x01O\x89\x88tR.",
    "structure": b"cnumpy\ndtype\n(\x8c\x05i4,i4\x89\x88tR.",
    "array over another object": FROMBUFFER + b"]cnumpy\ndtype\n(\x8c\x02u1tRK\x00tR.",
    "array of no dtype": FROMBUFFER + b"C\x01a\x8c\x01OK\x01\x85\x8c\x01CtR.",
    "short scalar": b"cnumpy._core.multiarray\nscalar\n("
    + b"cnumpy\ndtype\n(\x8c\x02i8tRC\x01atR.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(attack: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match="numpy would believe"):
        POLICY.unpickle(ATTACKS[attack])


def test_span_without_a_unit_has_a_genuine_state() -> None:
    arrays.check_state(numpy.dtype("m8"), numpy.dtype("m8").__reduce__()[2])
