"""Pickles functions and classes by value, for peers that cannot import them.

pickle writes a function or a class as a module and a name. For lambdas, closures, whatever a
program defines in its `__main__`, and modules that the peer does not have, that leads nowhere.
`dumps` writes these as what they are made of: code, the globals that the code uses (followed
through everything that goes by value too), closure, attributes. All else goes as pickle does it,
at pickle's speed, arrays out of band.

Rules
- By value goes what cannot be found by its name, what `__main__` defines, and what the modules
  named by the caller define. Modules themselves go by name always.
- What these reductions do not know (locks, open files, weak references) is left to dill. dill
  alone would write modules with all that is in them, arrays in band, and importable modules
  by name only.
- Code goes between equal versions of Python only, and says so where they differ.

What is written here is put together again by `rebuild`. Any thread may call all of it.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import importlib
import io
import marshal
import pickle
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator

from genrpc.codec import rebuild

#: What pickle raises for values that it does not know; anything else is the value's own failure.
REFUSALS = (pickle.PicklingError, AttributeError, TypeError)

BufferCallback = Callable[[pickle.PickleBuffer], object]
Buffers = typing.TypeVar("Buffers", bound=BufferCallback)


def dumps(
    root: object, modules: frozenset[str], make_buffers: Callable[[], Buffers]
) -> tuple[bytes, Buffers]:
    """Pickle `root`, with what `__main__` or one of `modules` defines by value.

    `make_buffers` makes the callback that collects the buffers; a trial that failed half-way has
    filled its own. Raises whatever pickle, dill or the values' own methods raise.
    """
    buffers = make_buffers()
    try:
        return _dump(_ByValuePickler, root, modules, buffers), buffers
    except REFUSALS as refusal:
        buffers = make_buffers()
        try:
            return _dump(_dill_pickler(), root, modules, buffers), buffers
        except REFUSALS:
            # dill's words are about its own trials; the first refusal names the value.
            raise refusal from None


def _dump(
    kind: Callable[..., pickle.Pickler],
    root: object,
    modules: frozenset[str],
    buffer_callback: BufferCallback,
) -> bytes:
    file = io.BytesIO()
    kind(file, modules, buffer_callback).dump(root)
    return file.getvalue()


class _ByValuePickler(pickle.Pickler):
    """The C pickler with the reductions of this module."""

    def __init__(
        self,
        file: io.BytesIO,
        modules: frozenset[str],
        buffer_callback: BufferCallback,
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self._reducer = Reducer(modules)

    def reducer_override(self, obj: object) -> typing.Any:  # noqa: ANN401  # as in typeshed
        return self._reducer.reduce(obj)


@functools.cache
def _dill_pickler() -> type[pickle.Pickler]:
    """Make the class that takes from dill only what this module and pickle do not know."""
    dill: typing.Any = import_dill()
    # The pure-Python pickler is the only one that can be extended by dill.
    stock: typing.Any = pickle._Pickler
    known = dict(dill.Pickler.dispatch)
    known[dict] = stock.save_dict  # dill compares each dict with the whole of __main__
    for kind in list(known):
        # A pointer of this process is a crash in another; the path of an open file, which is
        # all that dill sends of it, may be another file there.
        if getattr(kind, "__name__", "") == "PyCapsule" or _is_file(kind):
            del known[kind]

    class DillPickler(dill.Pickler):  # type: ignore[misc]  # dill has no types
        dispatch = known
        save = stock.save  # dill's own pickles arrays in band

        def __init__(
            self,
            file: io.BytesIO,
            modules: frozenset[str],
            buffer_callback: BufferCallback,
        ) -> None:
            super().__init__(file, 5, recurse=True, buffer_callback=buffer_callback)
            self._reducer = Reducer(modules)

        def reducer_override(self, obj: object) -> object:
            return self._reducer.reduce(obj)

    return DillPickler


def _is_file(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, io.IOBase)


_dill_lock = threading.Lock()


def import_dill() -> types.ModuleType:
    """Import dill without what its import does to the pickle module.

    It adds its types to the pure-Python pickler of the whole process. Whoever imported it before
    us wanted that, and keeps it.
    """
    with _dill_lock:
        ours = "dill" not in sys.modules
        import dill

        if ours:
            dill.extend(use_dill=False)
    module: types.ModuleType = dill
    return module


# ---------------------------------------------------------------- reductions

# Type.__flags__, of CPython's object.h: made by a class statement; closed to changes.
_HEAP_TYPE = 1 << 9
_IMMUTABLE_TYPE = 1 << 8

#: Marks of dataclasses that are compared by identity: a copy of one would be another mark.
_DATACLASS_MARKS = {
    id(mark): name
    for name, mark in vars(dataclasses).items()
    if type(mark).__module__ == "dataclasses"
}

_CachedFunction = type(functools.lru_cache(len))


class Reducer:
    """The reductions for one pickle: functions of one module share their globals in it."""

    def __init__(self, modules: frozenset[str]) -> None:
        self._modules = modules
        self._namespaces: dict[int, dict[str, object]] = {}

    def reduce(self, obj: object) -> object:
        """Return how to write `obj`, or NotImplemented: as pickle does."""
        # Many objects come by here; most are instances, for which this is the whole way.
        reduction = _REDUCTIONS.get(type(obj))
        if reduction is not None:
            return reduction(self, obj)
        if isinstance(obj, type):
            return self._class(obj)
        return _DATACLASS_MARKS.get(id(obj), NotImplemented)

    def _goes_by_name(self, obj: object) -> bool:
        module_name = getattr(obj, "__module__", None)
        if module_name == "__main__" or module_name in self._modules:
            return False
        found: object = sys.modules.get(module_name) if isinstance(module_name, str) else None
        for part in getattr(obj, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        return found is obj

    def _function(self, function: types.FunctionType) -> object:
        if self._goes_by_name(function):
            return NotImplemented
        code, found = function.__code__, function.__globals__
        used = {name: found[name] for name in _global_names(code) if name in found}
        namespace = self._namespaces.setdefault(
            id(found),
            {name: found[name] for name in ("__name__", "__package__") if name in found},
        )
        state = {
            "globals": used,
            "submodules": list(_submodules(code, used)),
            "attributes": function.__dict__,
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "__doc__": function.__doc__,
            "__defaults__": function.__defaults__,
            "__kwdefaults__": function.__kwdefaults__,
            "__annotations__": function.__annotations__,
        }
        arguments = (code, namespace, function.__name__, function.__closure__)
        return (rebuild.make_function, arguments, state, None, None, rebuild.fill_function)

    def _class(self, cls: type) -> object:
        by_name = not cls.__flags__ & _HEAP_TYPE or cls.__flags__ & _IMMUTABLE_TYPE
        if by_name or self._goes_by_name(cls):
            return NotImplemented
        own = dict(cls.__dict__)
        at_birth: dict[str, object] = {
            name: own.pop(name)
            for name in ("__module__", "__slots__", "__orig_bases__")
            if name in own
        }
        at_birth["__qualname__"] = cls.__qualname__
        for name, value in list(own.items()):
            made_anew = type(value) is types.MemberDescriptorType and value.__objclass__ is cls
            if made_anew or name in _NOT_CARRIED:
                del own[name]
        members: dict[str, object] = {}
        details: dict[str, dict[str, object]] = {}
        if issubclass(cls, enum.Enum):
            for name, member in cls.__members__.items():
                members[name] = member.value
                details[name] = _without(vars(member), _ENUM_MEMBER_OWN)
                own.pop(name, None)
            own = _without(own, _ENUM_OWN)
        number = rebuild.registry.number_of(cls)
        arguments = (type(cls), cls.__name__, cls.__bases__, at_birth, members, number)
        return (rebuild.make_class, arguments, (own, details), None, None, rebuild.fill_class)

    def _module(self, module: types.ModuleType) -> object:
        if sys.modules.get(module.__name__) is not module:
            raise pickle.PicklingError(f"no node can import the module {module.__name__!r}")
        return (importlib.import_module, (module.__name__,))

    def _cell(self, cell: types.CellType) -> object:
        try:
            content = cell.cell_contents
        except ValueError:  # a name that has no value yet
            return (types.CellType, ())
        # Filled after it was made: what is in it may well refer to it.
        return (types.CellType, (), (content,), None, None, rebuild.fill_cell)

    def _code(self, code: types.CodeType) -> object:
        return (rebuild.make_code, (rebuild.VERSION, marshal.dumps(code)))

    def _memoryview(self, view: memoryview) -> object:
        return (bytes, (immutable(view),))

    def _mapping_proxy(self, proxy: types.MappingProxyType[object, object]) -> object:
        return (types.MappingProxyType, (dict(proxy),))

    def _property(self, prop: property) -> object:
        return (property, (prop.fget, prop.fset, prop.fdel, prop.__doc__))

    def _method_kind(self, method: classmethod[object, ..., object]) -> object:
        return (type(method), (method.__func__,))

    def _cached_property(self, prop: functools.cached_property[object]) -> object:
        return (rebuild.make_cached_property, (prop.func, prop.attrname))

    def _cached_function(self, function: functools._lru_cache_wrapper[object]) -> object:
        if self._goes_by_name(function):
            return NotImplemented
        limits = function.cache_parameters()
        return (
            rebuild.make_cached_function,
            (function.__wrapped__, limits["maxsize"], limits["typed"]),
        )

    def _type_variable(self, variable: typing.TypeVar) -> object:
        if getattr(sys.modules.get(variable.__module__), variable.__name__, None) is variable and (
            variable.__module__ != "__main__"
        ):
            return NotImplemented
        bound = variable.__bound__
        variance = (variable.__covariant__, variable.__contravariant__)
        return (
            rebuild.make_type_variable,
            (variable.__name__, variable.__constraints__, bound, variance),
        )


_REDUCTIONS: dict[type, Callable[[Reducer, typing.Any], object]] = {
    types.FunctionType: Reducer._function,
    types.ModuleType: Reducer._module,
    types.CellType: Reducer._cell,
    types.CodeType: Reducer._code,
    types.MappingProxyType: Reducer._mapping_proxy,
    memoryview: Reducer._memoryview,
    property: Reducer._property,
    classmethod: Reducer._method_kind,
    staticmethod: Reducer._method_kind,
    functools.cached_property: Reducer._cached_property,
    _CachedFunction: Reducer._cached_function,
    typing.TypeVar: Reducer._type_variable,
}

# Made anew with each class, or without meaning elsewhere.
_NOT_CARRIED = frozenset(
    {"__dict__", "__weakref__", "__firstlineno__", "_abc_impl", "__static_attributes__"}
)
_ENUM_OWN = frozenset(
    {
        "_generate_next_value_",
        "_member_names_",
        "_member_map_",
        "_member_type_",
        "_value2member_map_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_hashable_values_",
        "__new__",
    }
)
_ENUM_MEMBER_OWN = frozenset(
    {"_value_", "_name_", "__objclass__", "_sort_order_", "_hashable_values_"}
)


def _without(values: typing.Mapping[str, object], names: frozenset[str]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in names}


def immutable(view: memoryview) -> pickle.PickleBuffer | bytes:
    """Make of a memoryview what arrives as bytes."""
    return pickle.PickleBuffer(view.toreadonly()) if view.contiguous else view.tobytes()


# dis is slow (50 µs for a small function), and the same lambda is sent again and again.
@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Names that the code, and code nested in it, may look up among the globals."""
    names = {
        instruction.argval: None
        for instruction in dis.get_instructions(code)
        if instruction.opname in _GLOBAL_OPERATIONS
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_global_names(constant)))
    return tuple(names)


_GLOBAL_OPERATIONS = frozenset(
    {
        "LOAD_GLOBAL",
        "STORE_GLOBAL",
        "DELETE_GLOBAL",
        "LOAD_NAME",  # in the body of a class
        "LOAD_FROM_DICT_OR_GLOBALS",
    }
)


def _submodules(code: types.CodeType, used: dict[str, object]) -> Iterator[types.ModuleType]:
    """Find `a.b` for code that says `a.b.f()` after `import a.b`: its globals have only `a`."""
    names = set(code.co_names)
    for value in used.values():
        if not isinstance(value, types.ModuleType):
            continue
        start = f"{value.__name__}."
        for name, module in list(sys.modules.items()):
            if name.startswith(start) and names.issuperset(name[len(start) :].split(".")):
                yield module
