"""Let numpy's arrays, numbers and dates into a pickle that is not trusted.

numpy believes what a pickle says of a dtype: with forged flags, bytes of the sender's choice are
taken for Python objects. It also makes arrays of memory as it was left, with whatever secrets.
So the functions here stand in the places of numpy's of the same names, and only states that
numpy itself would write are let through: plain numbers, texts, bytes, dates and spans, but no
objects and no structures. Whoever sends such a pickle has numpy; a node without it fails with
ModuleNotFoundError.
"""

from __future__ import annotations

import importlib
import math
import pickle
import re
from typing import Any, Final, TypeAlias

_DTYPE = re.compile(r"\?|b1|[iufc][0-9]{1,2}|[SUVmM][0-9]{0,9}")
_UNIT = re.compile(rb"[A-Za-z]{1,2}|generic")


# What is numpy's. It is no dependency of genrpc, so there are no types to check against.
_Numpy: TypeAlias = Any


def _numpy() -> _Numpy:
    return importlib.import_module("numpy")


def _internals(name: str) -> _Numpy:
    """Import numpy._core.<name>, which was numpy.core.<name> before numpy 2."""
    package = "_core" if int(_numpy().__version__.partition(".")[0]) >= 2 else "core"
    return importlib.import_module(f"numpy.{package}.{name}")


def _refuse(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it has {what}, which is not let in: numpy would believe it")


def _dtype(code: object, *_: object) -> object:
    """Make a dtype of plain numbers, texts or bytes; the order of its bytes comes as state."""
    if type(code) is not str or not _DTYPE.fullmatch(code):
        raise _refuse(f"the numpy dtype {code!r:.50}")
    # Always a copy: its state must not be set in the one that all share.
    return _numpy().dtype(code, False, True)


def _ndarray(*_: object) -> object:
    """Stand for numpy.ndarray, which itself makes arrays of memory as it was left."""
    raise _refuse("a numpy array without content")


def _reconstruct(cls: object, shape: object, code: object) -> object:
    """Make the empty array that an array's state is put into."""
    if cls is not _ndarray or shape != (0,) or code != b"b":
        raise _refuse("another numpy array than numpy writes")
    return _internals("multiarray")._reconstruct(_numpy().ndarray, (0,), b"b")


def _frombuffer(data: object, dtype: object, shape: object, *order: object) -> object:
    """Make an array over a buffer; out of band, it is the buffer itself."""
    # An array as a buffer could be freed under the new one by a state of its own.
    if not isinstance(data, (bytes, bytearray, memoryview, pickle.PickleBuffer)):
        raise _refuse("a numpy array over another object")
    return _internals("numeric")._frombuffer(data, _plain(dtype), shape, *order)


def _scalar(dtype: object, data: object) -> object:
    """Make one number, text or date of numpy's."""
    if type(data) is not bytes or len(data) != _plain(dtype).itemsize:
        raise _refuse("another numpy scalar than numpy writes")
    return _internals("multiarray").scalar(dtype, data)


BUILDERS: Final[dict[tuple[str, str], Any]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _ndarray,
    **{
        (f"numpy.{package}.{module}", function.__name__): function
        for package in ("_core", "core")
        for module, function in (("multiarray", _reconstruct), ("numeric", _frombuffer))
    },
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "scalar"): _scalar,
}


def _plain(dtype: object) -> _Numpy:
    if not isinstance(dtype, _numpy().dtype):
        raise _refuse("something else in place of a numpy dtype")
    return dtype


def check_state(instance: _Numpy, state: object) -> None:
    """Raise UnpicklingError unless numpy would write `state` for this object of numpy's."""
    numpy = _numpy()
    if isinstance(instance, numpy.dtype):
        if not _is_genuine(instance, state):
            raise _refuse("a state of a numpy dtype that numpy would not write")
    elif type(instance) is not numpy.ndarray or not _is_consistent(state):
        raise _refuse("a state of a numpy array that numpy would not write")


def _is_genuine(dtype: _Numpy, state: object) -> bool:
    """Tell whether numpy itself would write `state` for this dtype, whatever its byte order."""
    if type(state) is not tuple or len(state) not in (8, 9) or not _is_simple(state):
        return False
    order = state[1]
    if order not in ("<", ">", "=", "|"):
        return False
    if dtype.kind in "mM" and len(state) == 9:
        dtype = _with_unit(dtype, state[8])
        # The first is metadata, of which the one numpy writes {} and another None.
        state = (*state[:8], (None, state[8][1]))
    genuine = dtype.newbyteorder(order).__reduce__()[2]
    if len(genuine) == 9:
        genuine = (*genuine[:8], (None, genuine[8][1]))
    return bool(state == genuine)


def _with_unit(dtype: _Numpy, details: object) -> _Numpy:
    """Make a dtype of dates or spans with the unit of a state, for example 25 seconds."""
    match details:
        case ({} | None, (bytes(unit), int(count), 1, 1)) if _UNIT.fullmatch(unit) and count > 0:
            text = "" if unit == b"generic" else f"[{count}{unit.decode()}]"
            return _numpy().dtype(f"{dtype.kind}8{text}")
    raise _refuse("a unit of time that numpy would not write")


def _is_simple(value: object) -> bool:
    """Tell that comparing the value runs no code of anybody's."""
    if type(value) is tuple:
        return all(map(_is_simple, value))
    if type(value) is dict:
        return not value
    return value is None or type(value) in (int, str, bytes)


def _is_consistent(state: object) -> bool:
    """Tell whether the state of an array has as many bytes as its shape and dtype say."""
    if type(state) is not tuple or len(state) != 5:
        return False
    version, shape, dtype, fortran, data = state
    if [type(part) for part in (version, shape, fortran, data)] != [int, tuple, bool, bytes]:
        return False
    if not all(type(size) is int and size >= 0 for size in shape):
        return False
    return bool(math.prod(shape) * _plain(dtype).itemsize == len(data))
