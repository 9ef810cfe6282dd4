"""Puts together, where a pickle is decoded, what went by value, and exceptions.

The functions `make_…` and `fill_…` stand in pickles by name: renaming or moving them, or changing
their arguments, breaks the talk with older nodes. What may refer to itself is made empty first,
and filled when pickle knows it.

A class keeps its identity: each is numbered by the process that defines it. A process that gets a
number again gives the class it has, and a class that comes home is the one that left. Without a
known number, a class of `__main__` is the one of that name in this process's `__main__`.

Any thread may call all of it.
"""

from __future__ import annotations

import builtins
import enum
import functools
import marshal
import os
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable


class Registry:
    """Which class has which number; keeps no class alive."""

    def __init__(self) -> None:
        # Re-entrant: a class's finaliser may run, and pickle, while the lock is held.
        self._lock = threading.RLock()
        self._numbers: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()
        self._classes: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()
        self._received: weakref.WeakSet[type] = weakref.WeakSet()

    def number_of(self, cls: type) -> bytes:
        """Give the number of a class, a new one at its first call."""
        with self._lock:
            number = self._numbers.get(cls)
            if number is None:
                number = os.urandom(16)
                self._numbers[cls] = number
                self._classes[number] = cls
            return number

    def find(self, number: bytes) -> type | None:
        """Give the class of a number, None for a number not met here."""
        with self._lock:
            return self._classes.get(number)

    def receive(self, number: bytes, cls: type) -> type:
        """Enter a class made here from a pickle; the first of two threads gives the class."""
        with self._lock:
            known = self._classes.setdefault(number, cls)
            if known is cls:
                self._numbers[cls] = number
                self._received.add(cls)
            return known

    def was_received(self, cls: type) -> bool:
        """Whether the class was made from a pickle, and so has its home elsewhere."""
        with self._lock:
            return cls in self._received


registry = Registry()


#: Code differs between minor versions of Python.
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_code(version: str, data: bytes) -> types.CodeType:
    """Load code of another process."""
    if version != VERSION:
        raise ValueError(
            f"a function came by value from Python {version}, and this is Python {VERSION}: "
            "define it in a module that both nodes can import, or run equal versions"
        )
    code: types.CodeType = marshal.loads(data)  # as trusted as the pickle around it
    return code


def make_function(
    code: types.CodeType,
    namespace: dict[str, object],
    name: str,
    closure: tuple[types.CellType, ...] | None,
) -> types.FunctionType:
    """Make a function that lacks its state still."""
    namespace.setdefault("__builtins__", builtins)
    return types.FunctionType(code, namespace, name, None, closure)


def fill_function(function: types.FunctionType, state: dict[str, typing.Any]) -> None:
    """Give the function its state."""
    function.__globals__.update(state.pop("globals"))
    del state["submodules"]  # decoding them was what they came for
    function.__dict__.update(state.pop("attributes"))
    for name, value in state.items():
        setattr(function, name, value)


def fill_cell(cell: types.CellType, state: tuple[object]) -> None:
    """Give the cell its content."""
    cell.cell_contents = state[0]


def make_class(
    metaclass: type,
    name: str,
    bases: tuple[type, ...],
    at_birth: dict[str, object],
    members: dict[str, object],
    number: bytes,
) -> type:
    """Give the class of that number: known, of this `__main__`, or made without attributes."""
    known = registry.find(number) or _own_class(at_birth)
    if known is not None:
        return known
    made: type
    if issubclass(metaclass, enum.EnumMeta):
        body = metaclass.__prepare__(name, bases)
        for key, value in {**at_birth, **members}.items():
            body[key] = value
        made = metaclass(name, bases, body)
    elif metaclass.__name__ == "_TypedDictMeta":
        # It wants the bases of the class statement, and TypedDict is no class.
        made = typing.cast(type, type.__new__(metaclass, name, bases, at_birth))
    else:
        made = types.new_class(
            name, bases, {"metaclass": metaclass}, lambda body: body.update(at_birth)
        )
    return registry.receive(number, made)


def _own_class(at_birth: dict[str, object]) -> type | None:
    if at_birth.get("__module__") != "__main__":
        return None
    found: object = sys.modules.get("__main__")
    name = str(at_birth["__qualname__"])
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return None
    # A name that main only imported stands for a class of another module.
    return found if (found.__module__, found.__qualname__) == ("__main__", name) else None


def fill_class(cls: type, state: tuple[dict[str, object], dict[str, dict[str, object]]]) -> None:
    """Give a class that was made from a pickle its attributes, as they are at its home now."""
    if not registry.was_received(cls):
        return
    attributes, details = state
    for name, value in attributes.items():
        setattr(cls, name, value)
    for name, detail in details.items():
        vars(typing.cast("type[enum.Enum]", cls)[name]).update(detail)


def make_cached_property(
    function: Callable[[object], object], name: str | None
) -> functools.cached_property[object]:
    """Make the property anew: before Python 3.12 it has a lock, which nothing can pickle."""
    made = functools.cached_property(function)
    made.attrname = name
    return made


def make_cached_function(
    function: Callable[..., object], maxsize: int | None, typed: bool
) -> Callable[..., object]:
    """Make a function of functools.cache or lru_cache, with an empty cache."""
    return functools.lru_cache(maxsize, typed)(function)


def make_type_variable(
    name: str,
    constraints: tuple[object, ...],
    bound: object,
    variance: tuple[bool, bool],
) -> object:
    """Make a type variable."""
    make: typing.Any = typing.TypeVar
    return make(name, *constraints, bound=bound, covariant=variance[0], contravariant=variance[1])


# ---------------------------------------------------------------- exceptions

#: An exception's attributes, whatever its class says of them.
STATE = vars(BaseException)["__dict__"]


def make_exception(cls: type[BaseException], args: tuple[object, ...]) -> BaseException:
    """Make an exception without its `__init__`, and without a `__new__` that is not builtin."""
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise TypeError(f"{cls!r} is no class of exceptions")
    builtin: typing.Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    # OSError makes other classes of itself, by errno; UnicodeError takes no arguments here.
    made: BaseException = builtin.__new__(cls, *args)
    made.args = args
    return made


def fill_exception(exc: BaseException, state: tuple[dict[str, object], dict[str, object]]) -> None:
    """Give the exception its attributes."""
    attributes, details = state
    STATE.__get__(exc).update(attributes)
    for name, value in details.items():
        try:
            BaseException.__setattr__(exc, name, value)
        except (AttributeError, TypeError):  # read-only: `__new__` has set it
            continue
