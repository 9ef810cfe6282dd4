"""What a caller may run: functions with their signatures and the first lines of their docs.

Under a whitelist these are all functions of the list, whose modules are imported for it. Otherwise
nothing is imported: the list has the public functions, and the static and class methods of public
classes, that the modules imported so far define, as far as the policy admits them. Without a
prefix it leaves out the standard library, genrpc and what genrpc needs: there would be thousands.
Methods that want an instance are left out.

For workers: importing and looking at functions runs users' code, and may take long.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import types
from collections.abc import Callable, Iterator

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.policy import Policy

log = logging.getLogger("genrpc")

MAX_PAGE = 1000
MAX_SIGNATURE = 500
MAX_SUMMARY = 200
"""Characters; a page of the longest has to fit into a message of 4 MiB."""

_ALWAYS = ("node", "ping")
"""Functions of genrpc that every policy admits."""

_NEEDED = frozenset(
    {
        *(
            "genrpc",
            "grpc",
            "grpc_channelz",
            "grpc_health",
            "grpc_reflection",
            "grpc_status",
            "google",
        ),
        *("dill", "cryptography", "cffi", "rich", "msgpack", "cbor2", "tomli"),
    }
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

Name = tuple[str, str]  # module and function


def page_of(
    policy: Policy,
    allows: Callable[[str, str], bool],
    *,
    prefix: str = "",
    after: Name = ("", ""),
    size: int = MAX_PAGE,
) -> tuple[list[pb.FunctionInfo], Name | None]:
    """List `size` functions that come after a name, sorted by module and name.

    `allows` is asked besides the policy; `prefix` is compared with "module.function". Returns
    also the name to go on after; None: there are no more.
    """
    found = {
        name: target
        for name, target in _functions(policy, prefix)
        if name > after and f"{name[0]}.{name[1]}".startswith(prefix) and allows(*name)
    }
    names = sorted(found)
    page = [
        pb.FunctionInfo(
            module=name[0],
            function=name[1],
            signature=_signature(found[name]),
            summary=_summary(found[name]),
        )
        for name in names[:size]
    ]
    return page, names[size - 1] if len(names) > size else None


def _functions(policy: Policy, prefix: str) -> Iterator[tuple[Name, object]]:
    ours = importlib.import_module("genrpc")
    for name in _ALWAYS:
        yield ("genrpc", name), getattr(ours, name)
    if policy.restricts_pickles:  # a whitelist
        for name in policy.listed_modules():
            module = _imported(name) if _may_match(name, prefix) else None
            if module is not None:
                yield from _admitted(policy, name, module, dir(module))
        return
    for name, module in sorted(sys.modules.copy().items(), key=lambda item: item[0]):
        if _is_offered(name, module, prefix):
            offered = Policy("whitelist", [name])  # what a module defines and shows
            for function, target in _admitted(offered, name, module, list(vars(module))):
                if not isinstance(target, type) and _admits(policy, module, function, target):
                    yield function, target


def _may_match(module: str, prefix: str) -> bool:
    return f"{module}.".startswith(prefix) or prefix.startswith(f"{module}.")


def _imported(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # importing runs code, which may raise anything
        log.warning("rpc_module_list names %s, which cannot be imported: %r", name, type(error))
        return None


def _is_offered(name: str, module: object, prefix: str) -> bool:
    if not isinstance(module, types.ModuleType) or not _may_match(name, prefix):
        return False
    # Names of modules are not always names: tools put things there for themselves.
    if any(part.startswith("_") or not part.isidentifier() for part in name.split(".")):
        return False
    if vars(module).get("__name__") != name:  # one module by two names: os.path
        return False
    package = name.partition(".")[0]
    return bool(prefix) or not (package in sys.stdlib_module_names or package in _NEEDED)


def _admitted(
    policy: Policy, name: str, module: types.ModuleType, attributes: list[str]
) -> Iterator[tuple[Name, object]]:
    """Give the functions of a module, and the methods of its classes that need no instance."""
    for attribute in attributes:
        # The names first: another one may cost an import, in a module's own __getattr__.
        target = _attribute(module, attribute) if policy.screen(name, attribute) else None
        if callable(target) and _admits(policy, module, (name, attribute), target):
            yield (name, attribute), target
        cls = vars(module).get(attribute)
        if not isinstance(cls, type) or cls.__module__ != module.__name__:
            continue
        for method, raw in list(vars(cls).items()):
            function = f"{attribute}.{method}"
            if isinstance(raw, staticmethod | classmethod):
                target = _attribute(cls, method)
                if callable(target) and _admits(policy, module, (name, function), target):
                    yield (name, function), target


def _attribute(holder: object, name: str) -> object:
    try:
        found: object = getattr(holder, name, None)
    except Exception:  # a module's or a class's own __getattr__ may raise anything
        return None
    return found


def _admits(policy: Policy, module: types.ModuleType, name: Name, target: object) -> bool:
    try:
        return policy.admits(module, *name, target)
    except Exception:  # it looks at attributes, which may run code
        return False


def _signature(target: object) -> str:
    try:
        text = str(inspect.signature(target))  # type: ignore[arg-type]  # it was asked for callable
    except Exception:  # builtins may have none, and defaults a __repr__ that raises
        return "(...)"
    return _text(_ADDRESS.sub("", text), MAX_SIGNATURE)


def _summary(target: object) -> str:
    doc = _attribute(target, "__doc__")
    if not isinstance(doc, str):
        return ""
    return _text(doc.strip().partition("\n")[0].strip(), MAX_SUMMARY)


def _text(text: str, limit: int) -> str:
    """Make of any text one that protobuf takes, on one line."""
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return " ".join(cut.encode("utf-8", "backslashreplace").decode().split())
