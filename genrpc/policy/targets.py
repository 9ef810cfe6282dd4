"""Decide what callers may run: the settings rpc_module_control and rpc_module_list.

An entry is `module` or `module:function`. The decision falls in two steps, and a call needs
both: `screen` looks at names alone, before anything is imported; `admits` looks at what the
names led to. Rules:

- Names are compared as they are: no case, white space, NUL or look-alike is ever ironed out.
- A whitelist's `module` entry means what the module *defines* and offers: its `__all__`, or its
  public functions if it has none; never what it merely imported, nothing that begins with an
  underscore. A `module:function` entry is the operator's own word and means that one name,
  whatever it is.
- A blacklist's `module` entry means the module, its submodules, its C twin, and what it defines
  wherever it is imported. A blacklist keeps out mistakes rather than attackers: who may send
  pickles to such a node can do all that its user can.
- A dotted function is `Class.method` of a class defined in the module, never more.

Nothing here keeps state: any thread may ask. `screen` imports nothing; `find_class` imports
modules of the whitelist and data types of the standard library.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Iterator, Sequence

from genrpc.errors import ConfigurationError
from genrpc.names import check_entry
from genrpc.policy import pickles
from genrpc.settings import Settings

_ALWAYS = frozenset({("genrpc", "node"), ("genrpc", "ping")})

# Modules whose C halves do not simply have an underscore before their name.
_TWINS = {"os": ("posix", "nt"), "subprocess": ("_posixsubprocess", "_winapi")}

_MAX_WRAPPERS = 16  # partials and decorators around one function that a blacklist looks through


class Policy:
    """The answer to "may this be called?" for one node."""

    __slots__ = ("_control", "_functions", "_modules")

    def __init__(self, control: str, entries: Sequence[str]) -> None:
        """Take "disabled", "whitelist" or "blacklist", and the entries of the list.

        Raises ConfigurationError for another word: it must never come to mean "everything".
        """
        if control not in ("disabled", "whitelist", "blacklist"):
            raise ConfigurationError(
                f'rpc_module_control is "disabled", "whitelist" or "blacklist", not {control!r}.'
            )
        self._control = control
        self._modules: set[str] = set()
        self._functions: dict[str, set[str]] = {}
        for entry in entries:
            module, colon, function = check_entry(entry).partition(":")
            if colon:
                self._functions.setdefault(module, set()).add(function)
            else:
                self._modules.add(module)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """Make the policy that these settings ask for."""
        return cls(settings.rpc_module_control, settings.rpc_module_list)

    def __repr__(self) -> str:
        functions = (f"{m}:{f}" for m, names in self._functions.items() for f in names)
        return f"Policy({self._control!r}, {sorted([*self._modules, *functions])!r})"

    @property
    def restricts_pickles(self) -> bool:
        """Whether pickles must be decoded by `unpickle`: under a whitelist."""
        return self._control == "whitelist"

    def listed_modules(self) -> list[str]:
        """Name the modules of a whitelist, sorted, also those of single functions."""
        return sorted({*self._modules, *self._functions}) if self.restricts_pickles else []

    # -------------------------------------------------------------- calls

    def screen(self, module: str, function: str) -> bool:
        """Decide by the names alone; False if the call is refused, whatever they lead to.

        Under a blacklist the submodules of a listed package are refused, and so are the
        methods of a listed class. Under a whitelist submodules are modules of their own.
        """
        if self._control == "disabled" or (module, function) in _ALWAYS:
            return True
        if self._control == "blacklist":
            return not self._blacklisted(module, function)
        return self._is_listed(module, function) or (
            module in self._modules and _is_public(function)
        )

    def admits(self, module: types.ModuleType, name: str, function: str, target: object) -> bool:
        """Decide about what was found: `target`, as `function` of `module`, imported as `name`.

        To be asked after `screen`, which it repeats.
        """
        if not self.screen(name, function):
            return False
        if self._control == "disabled" or (name, function) in _ALWAYS:
            return True
        owners = _owners(module, name)
        holder, dot, attribute = function.partition(".")
        if dot and _own_class(module, owners, holder) is None:
            return False
        if self._control == "blacklist":
            return not any(self._blacklisted(*origin) for origin in _origins(module, target))
        if self._is_listed(name, function):
            return True
        if not _is_exported(module, holder):
            return False
        if dot:
            cls = _own_class(module, owners, holder)
            return cls is not None and _is_own_method(cls, attribute, target, owners)
        if isinstance(target, type):
            # Without __all__ a module means its functions.
            return "__all__" in vars(module) and target.__module__ in owners
        return _is_own_function(target, owners)

    def _is_listed(self, module: str, function: str) -> bool:
        return function in self._functions.get(module, ())

    def _blacklisted(self, module: str, function: str) -> bool:
        for listed in self._modules:
            if any(module == twin or module.startswith(f"{twin}.") for twin in _twins(listed)):
                return True
        holder = function.partition(".")[0]
        return any(
            module in _twins(listed) and (function in functions or holder in functions)
            for listed, functions in self._functions.items()
        )

    # -------------------------------------------------------------- pickles

    def unpickle(
        self,
        head: pickles.Data,
        buffers: Sequence[pickles.Data] = (),
        *,
        builders: pickles.Builders = pickles.NO_BUILDERS,
    ) -> object:
        """Decode a pickle as `genrpc.policy.pickles` does, with this whitelist's classes."""
        return pickles.unpickle(head, buffers, find=self._find_listed, builders=builders)

    def find_class(self, module: str, name: str) -> object:
        """Find what any unpickler may be given: immutable data types, safe by construction.

        For an unpickler that cannot watch over its opcodes, as those of the standard library;
        `unpickle`, which can, finds the whitelist's own classes and functions besides. Raises
        pickle.UnpicklingError for everything else.
        """
        return pickles.find_data_type(module, name)

    def _find_listed(self, module: str, name: str) -> object:
        """Find a class or a whitelisted function of a listed module; else raise UnpicklingError."""
        # A C function is pickled by the module that holds it: operator.add as _operator.add.
        for listed in self.listed_modules():
            if module in _twins(listed) and self._may_be_found(listed, name):
                try:
                    found = self._resolved(importlib.import_module(listed), listed, name)
                except ImportError:
                    continue
                if found is not None:
                    return found
        raise pickles.refusal(module, name)

    def _may_be_found(self, module: str, name: str) -> bool:
        return self._is_listed(module, name) or (module in self._modules and _is_public(name))

    def _resolved(self, module: types.ModuleType, name: str, qualname: str) -> object | None:
        """Give the class or function, or None for what is no business of a pickle."""
        holder, dot, attribute = qualname.partition(".")
        found = vars(module).get(holder)
        if dot:
            cls = _own_class(module, _owners(module, name), holder)
            found = None if cls is None else getattr(cls, attribute, None)
        if not isinstance(found, type):
            return found if callable(found) and self.admits(module, name, qualname, found) else None
        # Of the standard library only the data types that pickles.py lists. Others look up
        # attributes (operator.attrgetter), hold code or start things. A metaclass makes
        # classes, an enemy of the same kind.
        if name.partition(".")[0] in sys.stdlib_module_names or issubclass(found, type):
            return None
        is_own = found.__module__ in _owners(module, name) and _is_exported(module, holder)
        return found if is_own or self._is_listed(name, qualname) else None


# ------------------------------------------------------------------ what belongs to a module


def _is_public(function: str) -> bool:
    """Tell whether this is `function` or `Class.method` without a leading underscore in it."""
    parts = function.split(".")
    return len(parts) <= 2 and all(p.isidentifier() and not p.startswith("_") for p in parts)


def _is_exported(module: types.ModuleType, name: str) -> bool:
    exported = vars(module).get("__all__")
    # A text for an __all__ is a mistake; `in` would look for a part of it.
    return exported is None or (isinstance(exported, (list, tuple)) and name in exported)


def _twins(module: str) -> tuple[str, ...]:
    """Name the module and those that hold its C functions: math and _math, os and posix."""
    package, dot, last = module.rpartition(".")
    return (module, f"{package}{dot}_{last}", *_TWINS.get(module, ()))


def _owners(module: types.ModuleType, name: str) -> frozenset[str]:
    """List the values of `__module__` that mean "defined here".

    The module's own name is another than the imported one for os.path, for example.
    """
    return frozenset((*_twins(name), module.__name__))


def _module_of(target: object) -> object:
    return getattr(target, "__module__", None)


def _own_class(module: types.ModuleType, owners: frozenset[str], name: str) -> type | None:
    found = vars(module).get(name)
    return found if isinstance(found, type) and found.__module__ in owners else None


def _is_own_function(target: object, owners: frozenset[str]) -> bool:
    if isinstance(target, types.BuiltinFunctionType) and target.__module__ is None:
        # A method of an object in C, as random.random is: it belongs where its class does.
        return _module_of(type(target.__self__)) in owners
    return _is_function(target) and _module_of(target) in owners


def _is_function(target: object) -> bool:
    """Tell functions, in whatever language and under whatever cache, from other callables."""
    if isinstance(target, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return True
    # What functools.cache and compilers make of a function binds to instances as it does.
    return callable(target) and not isinstance(target, type) and hasattr(type(target), "__get__")


def _is_own_method(cls: type, name: str, target: object, owners: frozenset[str]) -> bool:
    """Tell whether `target` is the method `name` of `cls`, and defined where the class is."""
    for base in cls.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            if isinstance(found, (staticmethod, classmethod)):
                found = found.__func__
            # By identity, as a metaclass could have found another thing under the same name.
            is_target = found is getattr(target, "__func__", target)
            return is_target and base.__module__ in owners and _is_own_function(found, owners)
    return False


def _origins(module: types.ModuleType, target: object) -> Iterator[tuple[str, str]]:
    """Name where `target` was defined, and what it wraps: pairs of module and function."""
    yield module.__name__, _qualname(target)
    for _ in range(_MAX_WRAPPERS):
        for part in _definers(target):
            origin = _module_of(part)
            if isinstance(origin, str):
                yield origin, _qualname(part)
        inner = _wrapped(target)
        if inner is None:
            return
        target = inner


def _definers(target: object) -> Iterator[object]:
    """Give the target, and the class of the object that it belongs to or is."""
    yield target
    if isinstance(target, (types.BuiltinFunctionType, types.MethodType)):
        owner = target.__self__
        if not isinstance(owner, types.ModuleType):
            yield owner if isinstance(owner, type) else type(owner)
    elif not isinstance(target, (type, types.FunctionType)):
        yield type(target)


def _wrapped(target: object) -> object | None:
    for attribute in ("func", "__func__", "__wrapped__"):
        # "func" may mean anything but in a partial.
        if attribute != "func" or isinstance(target, functools.partial):
            inner: object = getattr(target, attribute, None)
            if inner is not None:
                return inner
    return None


def _qualname(target: object) -> str:
    name = getattr(target, "__qualname__", "")
    return name if isinstance(name, str) else ""
