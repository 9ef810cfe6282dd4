"""Names of nodes, destinations and targets: what users write, checked and taken apart.

Rules: everything is checked here once, before anything is sent, and a mistake raises TypeError
or ValueError with a sentence. Names are compared as they are written: nothing is folded or
normalised, so that what a policy reads is what is imported. A node's name is `name@host`, where
an IPv6 host stands in brackets (`a@[::1]`), so that a port can follow it.

Any thread may call any of it. Parsing is cached, as the same few texts come with every call.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, SupportsFloat

DEFAULT_HOST: Final = "127.0.0.1"

#: Longest name of a node, in characters; Hello, which carries two, has at most 16 KiB.
MAX_NAME: Final = 255

#: Longest name of a module, function or version, in bytes of UTF-8: a frame names thousands.
MAX_TARGET_NAME: Final = 255

_NAME = re.compile(r"[\w.+~$!*-]+")
_HOST = re.compile(r"[\w.-]+")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class NoKey(Enum):
    """The type of NO_KEY, so that type checkers know it from a user's key."""

    NO_KEY = "no key"

    def __repr__(self) -> str:
        """Show the name under which it is imported."""
        return "NO_KEY"


#: The key of a destination that was given without one; no user's key equals it.
NO_KEY: Final = NoKey.NO_KEY


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer, or a peer and a key with a stream of its own.

    `port_hint` is the port of "name@host:port", `host_hint` a whole "host:port". Hints say where
    to dial this once: they are no part of the identity, so equal destinations share a stream.
    """

    node: str
    key: Hashable = NO_KEY
    host_hint: str | None = field(default=None, compare=False)
    port_hint: int | None = field(default=None, compare=False)


def parse_destination(dest: object) -> Destination:
    """Understand "name@host", "name@host:port", "name" (on 127.0.0.1), or one of them with a key.

    Raises TypeError for anything but text or (text, hashable key), ValueError for text that
    names no node.
    """
    if isinstance(dest, str):
        return _parse_text(str(dest))
    if not isinstance(dest, tuple) or len(dest) != 2 or not isinstance(dest[0], str):
        raise TypeError(
            f'a destination is "name@host", "name@host:port" or (one of them, key), not {dest!r}'
        )
    text, key = dest
    try:
        hash(key)
    except TypeError:
        raise TypeError(f"the key of a destination must be hashable, {key!r} is not") from None
    plain = _parse_text(str(text))
    return Destination(plain.node, key, plain.host_hint, plain.port_hint)


@lru_cache(maxsize=4096)
def _parse_text(text: str) -> Destination:
    name, at, rest = text.partition("@")
    if not at:
        name, colon, port = name.partition(":")
        rest = DEFAULT_HOST + colon + port
    host, hint = _host_and_port(rest, text)
    if not _NAME.fullmatch(name) or len(text) > MAX_NAME:
        raise ValueError(
            f"{text!r} names no node: a node is name@host, the name made of letters, digits"
            f" and . _ - + ~ $ ! *, in all at most {MAX_NAME} characters"
        )
    return Destination(f"{name}@{bracketed(host)}", port_hint=hint)


def _host_and_port(text: str, whole: str) -> tuple[str, int | None]:
    """Take "host", "host:port", "::1", "[::1]" or "[::1]:port" apart; `whole` is for messages."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{whole!r}: after [ an IPv6 address and ] must come, then :port")
        return _ipv6(host, whole), _port(rest[1:], whole) if rest else None
    if text.count(":") > 1:
        return _ipv6(text, whole), None
    host, colon, port = text.partition(":")
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"{whole!r} has no valid host: a host name or an IP address is wanted, got {host!r}"
        )
    return host, _port(port, whole) if colon else None


def _ipv6(host: str, whole: str) -> str:
    import ipaddress  # rarely needed, and import genrpc must stay cheap

    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise ValueError(f"{whole!r} has no valid host: {error}") from None
    return host


def _port(text: str, whole: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535:
        return int(text)
    raise ValueError(f"{whole!r} has no valid port: 1 to 65535 is allowed, got {text!r}")


def bracketed(host: str) -> str:
    """Put an IPv6 host in brackets, so that a port can follow."""
    return f"[{host}]" if ":" in host else host


def node_name(text: object) -> str:
    """Check and complete a node's own name: "a" means "a@127.0.0.1"; a port has no place in it."""
    if not isinstance(text, str):
        raise TypeError(f"the name of a node is text, name@host, not {text!r}")
    destination = _parse_text(str(text))
    if destination.port_hint is not None:
        raise ValueError(
            f"{text!r}: a port is no part of a node's name; the port to listen on is the setting"
            " tcp_server_port, the port of a peer is set with remote_tcp_server_ports"
        )
    return destination.node


def split_node(name: str) -> tuple[str, str]:
    """Part a node's name in the name proper and its host, an IPv6 host without brackets."""
    name, _, host = node_name(name).partition("@")
    return name, host.strip("[]")


def parse_address(text: object) -> tuple[str, int]:
    """Understand "host:port" or "[::1]:port"; raises TypeError or ValueError."""
    if not isinstance(text, str):
        raise TypeError(f'an address is text, "host:port", not {text!r}')
    host, port = _host_and_port(text, text)
    if port is None:
        raise ValueError(f"{text!r} has no port: an address is host:port, or [IPv6 address]:port")
    return host, port


def check_host(text: object) -> str:
    """Check a host name or IP address without a port; an IPv6 address loses its brackets."""
    if not isinstance(text, str):
        raise TypeError(f"a host is text, not {text!r}")
    host, port = _host_and_port(text, text)
    if port is not None:
        raise ValueError(f"{text!r}: a host without a port is wanted")
    return host


def shard_key(key: Hashable) -> str:
    """Make the text that names a keyed stream in the handshake; "" for NO_KEY.

    Different for keys of different type or repr; short ones stay readable in logs.
    """
    if key is NO_KEY:
        return ""
    kind = type(key)
    text = f"{kind.__module__}.{kind.__qualname__}:{key!r}".removeprefix("builtins.")
    # A repr may hold what UTF-8 cannot: lone surrogates.
    data = text.encode("utf-8", "surrogatepass")
    if len(text) <= 64 and data.decode("utf-8", "ignore") == text:
        return text
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_target(module: object, function: object) -> tuple[str, str, str]:
    """Check a target; returns (module, function, version), where version "" means any.

    `module` is a dotted name or (dotted name, version); `function` a name, or "Class.method".
    """
    if type(module) is str and type(function) is str:  # what nearly all calls have
        return _checked_target(module, function, "")
    if isinstance(module, str) and isinstance(function, str):
        return _checked_target(str(module), str(function), "")
    if not isinstance(function, str):
        raise TypeError(f"a function is named by text, not by {function!r}")
    if not isinstance(module, tuple) or len(module) != 2 or not isinstance(module[0], str):
        raise TypeError(f"a module is named by text or (text, version), not by {module!r}")
    name, version = module
    if version is None:
        raise TypeError("the version of a module is text, not None; give the module alone for any")
    if not str(version) or "\0" in str(version) or not _is_unicode(str(version)):
        raise ValueError(f"{version!r} is no version; give the module alone for any version")
    return _checked_target(str(name), str(function), str(version))


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can carry the text: it cannot carry lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=4096)
def _checked_target(module: str, function: str, version: str) -> tuple[str, str, str]:
    check_module(module)
    parts = function.split(".")
    if len(parts) > 2 or not all(map(str.isidentifier, parts)):
        raise ValueError(f'{function!r} names no function: "function" or "Class.method" is allowed')
    if max(len(name.encode()) for name in (module, function, version)) > MAX_TARGET_NAME:
        raise ValueError(f"names of targets have at most {MAX_TARGET_NAME} bytes of UTF-8 each")
    return module, function, version


def check_module(module: str) -> str:
    """Check a dotted module name."""
    # isidentifier() is asked about the text as it is. Python's own source would fold full-width
    # letters to plain ones; here such a name stays that of another module, which does not exist.
    if not all(map(str.isidentifier, module.split("."))):
        raise ValueError(f"{module!r} names no module: identifiers with dots between are allowed")
    return module


def check_entry(entry: object) -> str:
    """Check an entry of a list of targets: "module" or "module:function"."""
    if not isinstance(entry, str):
        raise TypeError(f'"module" or "module:function" is wanted, not {entry!r}')
    module, colon, function = str(entry).partition(":")
    if colon:
        check_target(module, function)
    return check_module(module) + colon + function


def program_name() -> str:
    """Name the running program for its default node: the script without .py, or "python"."""
    path = sys.argv[0] if getattr(sys, "argv", None) else ""
    name = os.path.basename(path).removesuffix(".py")
    if name == "__main__":  # python -m package
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
    if path in ("-c", "-m", "-"):
        name = ""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "python"


def check_timeout(value: object, name: str = "timeout") -> float | None:
    """Check a duration in seconds: a number not below 0, or None for ever, as is infinity."""
    if value is None:
        return None
    if type(value) is float and 0.0 <= value < math.inf:  # every call: 0.1 µs in place of 5
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, SupportsFloat)):
        raise TypeError(f"{name} is a number of seconds or None, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # an int beyond float's range
        seconds = math.inf if value > 0 else -1.0  # type: ignore[operator]  # only int overflows
    if not seconds >= 0:  # NaN too
        raise ValueError(f"{name} is a number of seconds, 0 or more, or None, not {value!r}")
    return None if seconds == math.inf else seconds


def parse_duration(text: str) -> float | None:
    """Understand a duration of the command line: "5", "7.5", "500ms", "2s", "10m", "1h", "none"."""
    if text.lower() == "none":
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no duration: 5, 7.5, 500ms, 2s, 10m, 1h or none are understood"
        )
    return check_timeout(float(match[1]) * _UNITS[match[2]])
