"""The settings of a node: what there is, what is allowed, and where a value comes from.

`Settings` is read once, from keywords, environment, file and defaults in this order, is checked
as a whole, and never changes. It is the only place that reads the environment and the file; all
other modules take a Settings. Durations are seconds, sizes are bytes, None means for ever or none.

To add a setting, add one line to `Settings`; the documentation and the environment follow.
Over 400 lines, since the list of settings with their meanings is half of it.
Instances may be shared between threads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType, ModuleType
from typing import Any, Final, Literal, NamedTuple, SupportsIndex

from genrpc import names
from genrpc.errors import ConfigurationError, UnsafeConfigurationError

log = logging.getLogger("genrpc.settings")

Executor = Literal["thread", "process"]
#: From a node's name to "host:port", (host, port) or None.
PortDiscovery = Callable[[str], object]

MIN_COOKIE_CHARACTERS: Final = 16
_ENVIRONMENT: Final = "GENRPC_"
_CONFIG: Final = "GENRPC_CONFIG"
_KEYWORD: Final = "keyword"
_DEFAULT: Final = "default"
_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB


# ------------------------------------------------------------------ kinds of values


class _Kind(NamedTuple):
    """What values a setting may have.

    `check` gives the value as it is kept, or raises TypeError or ValueError, whose text is shown
    beside `allowed`; `parse` reads the text of an environment variable.
    """

    allowed: str
    check: Callable[[Any], object]
    parse: Callable[[str], object]
    unit: str = ""


def _read_number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read_bool(text: str) -> object:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words.get(text.lower(), text)


def _read_json(text: str) -> object:
    import json  # rarely needed, and import genrpc must stay cheap

    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("in the environment it is written as JSON") from None


def _check_seconds(value: object) -> float | None:
    try:
        return names.check_timeout(value)
    except (TypeError, ValueError):
        raise ValueError from None  # `allowed` says it all


def _check_span(value: object) -> float | None:
    seconds = _check_seconds(value)
    if seconds == 0:
        raise ValueError
    return seconds


def _integer(low: int, high: int | None = None) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = value.__index__()
        if number < low or (high is not None and number > high):
            raise ValueError
        return number

    return check


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value or "\0" in value:
        raise ValueError
    return str(value)


def _check_path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    return os.path.expanduser(_check_text(path))


def _check_cookie(value: object) -> str:
    text = _check_text(value).strip()
    if len(text) < MIN_COOKIE_CHARACTERS:
        raise UnsafeConfigurationError
    return text


def _check_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _one_of(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        text = _check_text(value)
        if text not in words:
            raise ValueError
        return text

    return check


def _check_discovery(value: object) -> object:
    return value if callable(value) else _one_of("local", "manual", "stateless")(value)


def _check_entries(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError
    return tuple(names.check_entry(entry) for entry in value)


def _mapping(
    check_key: Callable[[Any], str], check_value: Callable[[Any], object]
) -> Callable[[object], Mapping[str, object]]:
    def check(value: object) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            raise TypeError
        # Read-only, so that what was checked stays as it was.
        return MappingProxyType({check_key(k): check_value(v) for k, v in value.items()})

    return check


def _check_module(value: object) -> str:
    return names.check_module(_check_text(value))


def _check_port_or_address(value: object) -> int | str:
    if isinstance(value, str):
        names.parse_address(value)
        return value
    return _integer(1, 65535)(value)


_SECONDS = _Kind("a number of seconds, 0 or more", _check_seconds, _read_number, "seconds")
_SPAN = _Kind("a number of seconds above 0", _check_span, _read_number, "seconds")
_LISTENING_PORT = _Kind("0 (any free port) to 65535", _integer(0, 65535), _read_number)
_PORT = _Kind("1 to 65535", _integer(1, 65535), _read_number)
_COUNT = _Kind("a whole number, 1 or more", _integer(1), _read_number)
_BYTES = _COUNT._replace(unit="bytes")
#: Less would leave a frame no room for a small payload beside the names of its targets.
_FRAME = _Kind("a whole number, 65536 or more", _integer(65536), _read_number, unit="bytes")
_BOOL = _Kind("true or false", _check_bool, _read_bool)
_HOST = _Kind("a host name or IP address", names.check_host, str)
_PATH = _Kind("the path of a file", _check_path, str)
_COOKIE = _Kind(f"text of at least {MIN_COOKIE_CHARACTERS} characters", _check_cookie, str)
_EXECUTOR = _Kind('"thread" or "process"', _one_of("thread", "process"), str)
_CONTROL = _Kind(
    '"disabled", "whitelist" or "blacklist"', _one_of("disabled", "whitelist", "blacklist"), str
)
_DISCOVERY = _Kind(
    '"local", "manual", "stateless" or, by keyword, a callable', _check_discovery, str
)
_ENTRIES = _Kind('a list of "module" or "module:function"', _check_entries, _read_json)
_PEERS = _Kind(
    'a table of peer name to port or "host:port"',
    _mapping(names.node_name, _check_port_or_address),
    _read_json,
)
_EXECUTORS = _Kind(
    'a table of module to "thread" or "process"',
    _mapping(_check_module, _EXECUTOR.check),
    _read_json,
)


# ------------------------------------------------------------------ one setting


class Description(NamedTuple):
    """What the documentation says of a setting."""

    name: str
    default: object
    unit: str
    doc: str
    allowed: str


class _Setting(NamedTuple):
    kind: _Kind
    default: object
    doc: str
    none: str  # what None means; "" where None is not allowed

    @property
    def allowed(self) -> str:
        return self.kind.allowed + (f", or none: {self.none}" if self.none else "")


def _setting(  # Any, as with dataclasses.field: the annotation beside it says the type.
    kind: _Kind, default: object, doc: str, *, none: str = ""
) -> Any:  # noqa: ANN401
    known = _Setting(kind, default, doc, none)
    # Mappings have no hash; equal settings still hash alike.
    return field(metadata={"setting": known}, hash=not isinstance(default, Mapping))


_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Settings:
    """All settings of a node, checked; `Settings(receive_timeout=5.0)`.

    Reads keywords, the environment (GENRPC_RECEIVE_TIMEOUT), the table [genrpc] of the TOML file
    named by GENRPC_CONFIG, and the defaults, in this order. Raises ConfigurationError with a
    sentence; UnsafeConfigurationError where the value would let strangers in.
    """

    _sources: Mapping[str, str] = field(compare=False)

    # --- addresses
    tcp_server_port: int | None = _setting(
        _LISTENING_PORT, 5369, "port listened on", none="do not listen"
    )
    listen_address: str = _setting(
        _HOST, "127.0.0.1", "address listened on; 0.0.0.0 and :: are all, of IPv4 and IPv6"
    )
    insecure_listen: bool = _setting(
        _BOOL, False, "allow a listen_address other than loopback without TLS"
    )
    tcp_client_port: int = _setting(_PORT, 5369, "port dialled when nothing else is known")
    remote_tcp_server_ports: Mapping[str, int | str] = _setting(
        _PEERS, _EMPTY, 'port, or "host:port", of each peer'
    )
    port_discovery: Literal["local", "manual", "stateless"] | PortDiscovery = _setting(  # noqa: RUF009 - makes a field, as dataclasses.field does
        _DISCOVERY,
        "local",
        "how a peer's port is found: among this user's nodes on this machine, not at all,"
        " from the digits that end its name, or by a function",
    )

    # --- time
    connect_timeout: float | None = _setting(
        _SECONDS, 5.0, "a stream to a peer must stand within it", none="for ever"
    )
    send_timeout: float | None = _setting(
        _SECONDS, 5.0, "the stream must accept a request within it", none="for ever"
    )
    receive_timeout: float | None = _setting(
        _SECONDS, 15.0, "timeout of call, multicall and sbcast unless given", none="for ever"
    )
    handshake_timeout: float = _setting(
        _SPAN, 5.0, "a caller must have proved its cookie within it"
    )
    client_inactivity_timeout: float | None = _setting(
        _SPAN, None, "the caller closes a stream that is idle for so long", none="never"
    )
    server_inactivity_timeout: float | None = _setting(
        _SPAN, None, "the callee closes a stream that is idle for so long", none="never"
    )
    async_call_inactivity_timeout: float | None = _setting(
        _SPAN, None, "the result of an async_call is dropped when not taken in it", none="never"
    )
    keepalive_interval: float | None = _setting(
        _SPAN, 10.0, "time between pings of a stream", none="no pings"
    )
    keepalive_timeout: float = _setting(
        _SPAN, 5.0, "a ping must be answered within it, or the stream is closed"
    )
    connection_inactivity_timeout: float | None = _setting(
        _SPAN, 60.0, "a connection without a stream or request is closed after it", none="never"
    )
    max_connection_age: float | None = _setting(
        _SPAN, None, "a stream, or connection, is replaced when so old", none="never"
    )

    # --- who may do what
    cookie: str | None = _setting(
        _COOKIE, None, "the nodes' shared secret; goes before cookie_file", none="see cookie_file"
    )
    cookie_file: str | None = _setting(
        _PATH, None, "file of the cookie", none="one in the user's config directory, made when used"
    )
    certfile: str | None = _setting(
        _PATH, None, "the node's certificate chain, PEM", none="without TLS"
    )
    keyfile: str | None = _setting(_PATH, None, "the node's private key, PEM", none="without TLS")
    cacertfile: str | None = _setting(
        _PATH, None, "certificates of the authority of all nodes, PEM", none="without TLS"
    )
    rpc_module_control: Literal["disabled", "whitelist", "blacklist"] = _setting(
        _CONTROL, "disabled", "whether rpc_module_list says what may be called, or what may not"
    )
    rpc_module_list: tuple[str, ...] = _setting(
        _ENTRIES, (), "modules and functions for rpc_module_control"
    )
    send_tracebacks: bool = _setting(
        _BOOL, True, "send the traceback of a failed function to its caller"
    )

    channelz: bool = _setting(
        _BOOL,
        False,
        "tell bearers of a token how gRPC's connections do (`grpc.channelz.v1`); wants the extra"
        " `channelz`",
    )

    # --- running functions
    executor: Literal["thread", "process"] = _setting(
        _EXECUTOR, "thread", "where functions run: in threads, or in worker processes"
    )
    executor_per_module: Mapping[str, Executor] = _setting(
        _EXECUTORS, _EMPTY, "the executor of single modules"
    )
    max_workers: int = _setting(_COUNT, 256, "functions running at once")
    nonblocking: tuple[str, ...] = _setting(
        _ENTRIES, (), "functions that return at once and run on the loop thread"
    )
    switch_interval: float | None = _setting(
        _SPAN,
        None,
        "time between Python's thread switches, for the whole process",
        none="leave it as it is",
    )

    # --- limits
    max_message_bytes: int = _setting(_BYTES, 512 * _MIB, "largest request or result, in bytes")
    max_frame_bytes: int = _setting(_FRAME, 4 * _MIB, "largest frame of a stream, in bytes")
    max_calls: int = _setting(_COUNT, 10_000, "calls of one peer, running and queued")
    max_node_calls: int = _setting(_COUNT, 100_000, "calls of all peers, running and queued")
    max_connections: int = _setting(
        _COUNT, 10_000, "streams of all callers; connections beyond it have no answer"
    )
    max_pending_handshakes: int = _setting(_COUNT, 256, "callers not yet authenticated")
    max_pending_handshakes_per_address: int = _setting(
        _COUNT, 128, "callers of one address not yet authenticated"
    )
    max_queued_casts: int = _setting(
        _COUNT, 1_000_000, "casts waiting here for one destination; more are dropped"
    )
    max_queued_bytes: int = _setting(
        _BYTES, _GIB, "bytes of casts waiting here for one destination; more are dropped"
    )
    max_unread_reply_bytes: int = _setting(
        _BYTES, _GIB, "bytes of replies waiting for one slow reader"
    )
    max_transfer_bytes: int = _setting(
        _BYTES,
        _GIB,
        "bytes of large payloads arriving on a stream at once; one alone may have more",
    )
    max_depth: int = _setting(_COUNT, 100, "nesting of values from other languages")
    chunk_bytes: int = _setting(_BYTES, 512 * 1024, "size of a large payload's chunks, in bytes")
    window_bytes: int = _setting(
        _BYTES, 2 * _MIB, "chunk bytes under way on a stream, in each direction"
    )
    cast_window: int = _setting(_COUNT, 16_384, "casts under way on a stream")

    def __init__(self, **changes: object) -> None:
        found, sources = _read(changes)
        for name, value, source in _outside(hidden_by=sources):
            found[name], sources[name] = _checked(name, value, source), source
        self._fill(found, sources)

    def changed(self, **changes: object) -> Settings:
        """Make a copy with other values; what is not named stays, wherever it came from."""
        found, sources = _read(changes)
        kept = {name: getattr(self, name) for name in _KNOWN}
        copy = object.__new__(Settings)
        copy._fill({**kept, **found}, {**self._sources, **sources})
        return copy

    def is_given(self, name: str) -> bool:
        """Tell whether somebody set `name`; False where the default holds."""
        return self._sources.get(name, _DEFAULT) != _DEFAULT

    def source_of(self, name: str) -> str:
        """Say where the value of `name` came from, in words for a message."""
        return self._sources.get(name, _DEFAULT)

    def limits(self) -> dict[str, float | None]:
        """Give what callers are held to, in seconds, bytes or counts; None: no limit."""
        return {name: getattr(self, name) for name in LIMITS}

    @staticmethod
    def describe() -> list[Description]:
        """List name, default, unit ("seconds", "bytes" or ""), meaning, allowed values of all."""
        return [
            Description(name, s.default, s.kind.unit, s.doc, s.allowed)
            for name, s in _KNOWN.items()
        ]

    def __repr__(self) -> str:
        """Show what was given; never the cookie."""
        given = (name for name in _KNOWN if self.is_given(name))
        parts = (f"{n}={'<hidden>' if n == 'cookie' else repr(getattr(self, n))}" for n in given)
        return f"Settings({', '.join(parts)})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the values as they are; elsewhere the environment may be another."""
        values = {name: getattr(self, name) for name in _KNOWN}
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        return (_restored, (plain, dict(self._sources)))

    def _fill(self, values: Mapping[str, object], sources: Mapping[str, str]) -> None:
        """Set all attributes, once; what is not among `values` gets its default."""
        for name, setting in _KNOWN.items():
            # The way in which a frozen dataclass itself sets an attribute when it is made.
            object.__setattr__(self, name, values.get(name, setting.default))
        object.__setattr__(self, "_sources", MappingProxyType(dict(sources)))
        self._check_tls()

    def _check_tls(self) -> None:
        files = {name: getattr(self, name) for name in ("certfile", "keyfile", "cacertfile")}
        missing = [name for name, path in files.items() if path is None]
        if 0 < len(missing) < 3:
            raise ConfigurationError(
                "TLS needs certfile, keyfile and cacertfile together, not set:"
                f" {', '.join(missing)}. Set all three, or none to do without TLS."
            )


_KNOWN: Final[dict[str, _Setting]] = {
    f.name: f.metadata["setting"] for f in fields(Settings) if "setting" in f.metadata
}


#: What callers may meet; each has its answer in the tests.
LIMITS: Final = (
    "max_message_bytes",
    "max_frame_bytes",
    "max_calls",
    "max_node_calls",
    "max_workers",
    "max_connections",
    "max_pending_handshakes",
    "max_pending_handshakes_per_address",
    "max_unread_reply_bytes",
    "max_transfer_bytes",
    "max_depth",
    "window_bytes",
    "cast_window",
    "max_queued_casts",
    "max_queued_bytes",
    "handshake_timeout",
    "connection_inactivity_timeout",
    "server_inactivity_timeout",
    "max_connection_age",
)


def _restored(values: dict[str, object], sources: dict[str, str]) -> Settings:
    """Make the Settings of a pickle."""
    settings = object.__new__(Settings)
    checked = {n: _checked(n, v, "pickle") for n, v in values.items() if n in _KNOWN}
    settings._fill(checked, sources)
    return settings


# ------------------------------------------------------------------ where values come from


def _read(keywords: Mapping[str, object]) -> tuple[dict[str, object], dict[str, str]]:
    """Check the keywords; gives values and sources by name."""
    for name in keywords:
        if name not in _KNOWN:
            raise ConfigurationError(f"there is no setting {name!r} (keyword){_nearest(name)}")
    values = {name: _checked(name, value, _KEYWORD) for name, value in keywords.items()}
    return values, dict.fromkeys(values, _KEYWORD)


def _outside(hidden_by: Container[str]) -> Iterator[tuple[str, object, str]]:
    """Yield what environment and file say: name, value, source.

    What a more important source has set is skipped unread, so that it mends a mistake below it.
    """
    yield from _in_environment(hidden_by)
    path = os.environ.get(_CONFIG)
    if path:
        yield from _in_file(os.path.expanduser(path), hidden_by)


def _in_environment(hidden_by: Container[str]) -> Iterator[tuple[str, object, str]]:
    for variable, text in os.environ.items():
        if not variable.startswith(_ENVIRONMENT) or variable == _CONFIG or not text.strip():
            continue
        name = variable.removeprefix(_ENVIRONMENT).lower()
        if name not in _KNOWN:
            # The prefix may be used by others, so this is no error.
            if near := _nearest(name, cutoff=0.85):
                log.warning("environment variable %s is no setting%s", variable, near)
        elif name not in hidden_by:
            source = f"environment variable {variable}"
            yield name, _parsed(name, text.strip(), source), source


def _in_file(path: str, hidden_by: Container[str]) -> Iterator[tuple[str, object, str]]:
    source = f"file {path}"
    for name, value in _table(path).items():
        if name not in _KNOWN:
            raise ConfigurationError(f"there is no setting {name!r} ({source}){_nearest(name)}")
        if name not in hidden_by:
            is_none = _KNOWN[name].none and isinstance(value, str) and value.lower() == "none"
            yield name, None if is_none else value, source


def _table(path: str) -> Mapping[str, object]:
    """Read the table [genrpc] of a TOML file; no such table is an empty one."""
    toml = _toml()
    try:
        with open(path, "rb") as file:
            table = toml.load(file).get("genrpc", {})
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigurationError(
            f"the file {path}, named by {_CONFIG}, cannot be read: {error.strerror}."
        ) from None
    except ValueError as error:  # wrong TOML, or no UTF-8
        raise ConfigurationError(
            f"the file {path}, named by {_CONFIG}, is not valid TOML: {error}."
        ) from None
    if not isinstance(table, dict):
        raise ConfigurationError(f"genrpc in the file {path} must be a table: [genrpc].")
    if "cookie" in table and os.name == "posix" and mode & 0o077:
        # As ssh does with its keys.
        raise UnsafeConfigurationError(
            f"the file {path} holds the cookie and others can read or write it:"
            f" chmod 600 {path}, or keep the cookie in a cookie_file."
        )
    return table


def _toml() -> ModuleType:
    # Only few have a file, and import genrpc must stay cheap.
    import importlib

    try:
        return importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        return importlib.import_module("tomli")


def _parsed(name: str, text: str, source: str) -> object:
    """Read the text of an environment variable."""
    setting = _KNOWN[name]
    if setting.none and text.lower() == "none":
        return None
    try:
        return setting.kind.parse(text)
    except ValueError as error:
        raise _refusal(name, text, source, str(error)) from None


def _checked(name: str, value: object, source: str) -> object:
    """Give the value as it is kept; raises ConfigurationError for one that is not allowed."""
    setting = _KNOWN[name]
    try:
        checked = None if value is None else setting.kind.check(value)
        if checked is None and not setting.none:  # infinity is None too
            raise ValueError
    except UnsafeConfigurationError:
        raise UnsafeConfigurationError(str(_refusal(name, value, source))) from None
    except (TypeError, ValueError) as error:
        raise _refusal(name, value, source, str(error)) from None
    return checked


def _refusal(name: str, value: object, source: str, detail: str = "") -> ConfigurationError:
    shown = "" if name == "cookie" else f" {value!r}"
    reason = f" ({detail})" if detail and name != "cookie" else ""
    return ConfigurationError(
        f"setting {name}: the value{shown} ({source}) is not allowed{reason};"
        f" allowed is {_KNOWN[name].allowed}."
    )


def _nearest(name: str, cutoff: float = 0.6) -> str:
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
