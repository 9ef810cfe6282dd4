"""Decode pickles on a node with a whitelist, without giving away more than the list does.

A pickle is a program. What it can reach, it can call with any arguments (REDUCE, INST, OBJ) and
change (BUILD sets attributes: of a class, of a function's `__defaults__`). So it is not enough
to choose what it may find. Rules:

- It finds immutable data types of Python and its library, a few data types more, numpy's
  arrays, and what `find` gives: the whitelist's own classes and functions.
- It may call types, and the builders of this module and of its caller. Functions it may hand
  over as values, not call: what one returns could otherwise be given to the next.
- It may change what it made, never what it found, nor members of an enum.
- numpy's arrays come by the functions of `arrays`, as numpy's own believe too much.

What a pickle can still do is make large values, up to the limits of a message and beyond
(`range` in a `list`): its sender has the cookie.

Most payloads have only plain data in them: they are read by C, and only those that find
something mutable are read again by Python's own unpickler, which can be watched, but which is
some twenty times slower. Any thread may call this.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import importlib
import io
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Final

from genrpc.policy import arrays

Data = bytes | bytearray | memoryview
Builders = Mapping[tuple[str, str], Callable[..., object]]
"""Module and name to a function that a pickle may call."""
Find = Callable[[str, str], object]

NO_BUILDERS: Final[Builders] = types.MappingProxyType({})

# ------------------------------------------------------------------ what is found


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BUILTINS = _names(
    "bool int float complex str bytes bytearray list tuple dict set frozenset range slice object"
    " Ellipsis NotImplemented"
)
# Left out on purpose: collections.defaultdict (calls what it is given), zoneinfo (reads files),
# copyreg._reconstructor (makes anything), _codecs.encode (any codec; protocol 2 needs it for
# bytes), enum and functools (call, or make classes).
_DATA = {
    "builtins": _BUILTINS,
    "collections": _names("OrderedDict deque Counter"),
    "datetime": _names("date time datetime timedelta timezone"),
    "decimal": _names("Decimal"),
    "fractions": _names("Fraction"),
    "uuid": _names("UUID SafeUUID"),
    "pathlib": _names("PurePath PurePosixPath PureWindowsPath Path PosixPath WindowsPath"),
    "genrpc.errors": _names("BadRPC BadTCP RemoteExit Ok"),
}
# Python 3.13 alone writes its paths under this name.
_MOVED = {"pathlib._local": "pathlib"}

_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: its attributes cannot be set


def refusal(module: str, name: str) -> pickle.UnpicklingError:
    """Make the exception for what a pickle may not reach."""
    what = f"{module}.{name}"[:200]
    return pickle.UnpicklingError(
        f"it refers to {what!r}, which this node's whitelist does not let into a pickle: send "
        "plain data, or add its module to rpc_module_list there"
    )


def find_data_type(module: str, name: str) -> object:
    """Find an immutable data type, safe in any unpickler; else raise UnpicklingError."""
    found = _find_data(module, name)
    if found is None or (isinstance(found, type) and not found.__flags__ & _IMMUTABLE):
        raise refusal(module, name)
    return found


def _find_data(module: str, name: str) -> object | None:
    module = _MOVED.get(module, module)
    if name in _DATA.get(module, ()):
        return getattr(importlib.import_module(module), name, None)
    if module == "builtins":
        found = vars(builtins).get(name)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    return None


# ------------------------------------------------------------------ unpicklers


def unpickle(
    head: Data, buffers: Sequence[Data] = (), *, find: Find, builders: Builders = NO_BUILDERS
) -> object:
    """Decode a pickle with its out-of-band buffers.

    `find` gives what the whitelist adds, or raises UnpicklingError. Raises UnpicklingError for
    what is refused; a broken pickle may raise anything.
    """
    # The one in C caches these, and takes them from the cache without asking find_class.
    if not _EXTENSIONS:
        with contextlib.suppress(_NotPlainError):
            return _PlainUnpickler(head, buffers).load()
    return _WatchedUnpickler(head, buffers, find, builders).load()


# What copyreg.add_extension was told in this process.
_EXTENSIONS: dict[int, object] = copyreg._inverted_registry  # type: ignore[attr-defined]  # no stub


class _NotPlainError(Exception):
    """The pickle has more than plain data and must be watched."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads immutable data types only."""

    def __init__(self, head: Data, buffers: Sequence[Data]) -> None:
        super().__init__(io.BytesIO(head), buffers=buffers)

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # as the one overridden
        try:
            return find_data_type(module, name)
        except pickle.UnpicklingError:
            raise _NotPlainError from None


# The one in Python: the one in C gives no say in what is called and changed. Its name has an
# underscore, but is old, and dill builds on it too.
class _WatchedUnpickler(pickle._Unpickler):
    """Asks before it finds, calls or changes anything.

    Methods are looked up in the type, as Python itself does with special ones: an instance may
    have anything as an attribute, a function that is not to be called here included.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, head: Data, buffers: Sequence[Data], find: Find, builders: Builders) -> None:
        super().__init__(io.BytesIO(head), buffers=buffers)
        self._find = find
        self._builders = builders
        self._may_call = {id(f) for f in (*builders.values(), *arrays.BUILDERS.values())}
        self._found: dict[int, object] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # as the one overridden
        found = self._builders.get((module, name)) or arrays.BUILDERS.get((module, name))
        if found is None:
            found = _find_data(module, name)
        if found is None:
            found = self._find(module, name)
        self._found[id(found)] = found  # keeps it alive, and so its id its own
        return found

    def get_extension(self, code: int) -> None:
        # The registry's cache would go past find_class.
        raise pickle.UnpicklingError("it uses copyreg's extension registry, which is not let in")

    # What calls

    def load_reduce(self) -> None:
        function = self.stack[-2]
        if not isinstance(function, type) and id(function) not in self._may_call:
            raise pickle.UnpicklingError("it calls something else than a type, which is not let in")
        self._go_on(pickle.REDUCE)

    def load_newobj(self) -> None:
        _check_type(self.stack[-2])
        self._go_on(pickle.NEWOBJ)

    def load_newobj_ex(self) -> None:
        _check_type(self.stack[-3])
        self._go_on(pickle.NEWOBJ_EX)

    def _instantiate(self, cls: object, args: object) -> None:
        # Of the opcodes INST and OBJ.
        _check_type(cls)
        super()._instantiate(cls, args)  # type: ignore[misc]  # not in the stubs

    # What changes

    def load_build(self) -> None:
        state = self.stack.pop()
        instance = self._changeable(self.stack[-1])
        if isinstance(instance, (type, types.ModuleType, types.FunctionType, Enum)):
            raise _shared()
        if str(type(instance).__module__).partition(".")[0] == "numpy":
            arrays.check_state(instance, state)
        set_state = getattr(type(instance), "__setstate__", None)
        if set_state is not None:
            set_state(instance, state)
            return
        attributes, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
        if attributes:
            vars(instance).update(attributes)
        for name, value in (slots or {}).items():
            setattr(instance, name, value)

    def load_append(self) -> None:
        item = self.stack.pop()
        target = self._changeable(self.stack[-1])
        type(target).append(target, item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._add(items, "append")

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._add(items, "add")

    def _add(self, items: list[Any], method: str) -> None:
        target = self._changeable(self.stack[-1])
        if type(target) is list:
            target.extend(items)
            return
        add = getattr(type(target), method)
        for item in items:
            add(target, item)

    def load_setitem(self) -> None:
        self._changeable(self.stack[-3])
        self._go_on(pickle.SETITEM)

    def load_setitems(self) -> None:
        self._changeable(self.metastack[-1][-1])
        self._go_on(pickle.SETITEMS)

    def _changeable(self, target: Any) -> Any:  # noqa: ANN401  # a value of the pickle
        if id(target) in self._found:
            raise _shared()
        return target

    def _go_on(self, opcode: bytes) -> None:
        pickle._Unpickler.dispatch[opcode[0]](self)  # type: ignore[arg-type]  # it is one

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_additems,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _check_type(cls: object) -> None:
    if not isinstance(cls, type):
        raise pickle.UnpicklingError("it makes an object of no type, which is not let in")


def _shared() -> pickle.UnpicklingError:
    return pickle.UnpicklingError("it changes what others use too, which is not let in")
