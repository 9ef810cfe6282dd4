"""Where a node listens: from a node's name to a host and port.

`find` goes through the sources in the order of the contract: the hint of this call,
`remote_tcp_server_ports`, `port_discovery`, `tcp_client_port`. With `port_discovery="local"` the
nodes of one user on one machine find each other by the runtime directory, where each serving
node keeps one small file while it lives:

    $XDG_RUNTIME_DIR/genrpc, else <temporary directory>/genrpc-<uid>

Rules: the directory belongs to this user alone, or it is refused; a file is written whole or not
at all; an entry counts only while the very process that wrote it lives. An entry is a hint, no
proof: the handshake finds out who answers.

There is no state and no waiting but for small files, so any thread may call it; `find` runs a
user's callable where `is_quick` says so, and that belongs in no event loop.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from genrpc import names
from genrpc.errors import TransportError, UnsafeConfigurationError
from genrpc.settings import Settings

log = logging.getLogger("genrpc.discovery")

#: Host and port.
Address = tuple[str, int]

#: gen_rpc's base for nodes whose names end in digits.
STATELESS_PORT: Final = 5370

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class UnknownNodeError(TransportError):
    """Discovery knows no address for the node: BadTCP("nxdomain"), not started."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="nxdomain", execution="not_started")


# ------------------------------------------------------------------ name → address


def is_quick(destination: names.Destination, settings: Settings) -> bool:
    """Tell whether `find` runs no user code for this destination."""
    known = destination.host_hint is not None or destination.port_hint is not None
    return (
        known
        or destination.node in settings.remote_tcp_server_ports
        or not callable(settings.port_discovery)
    )


def find(destination: names.Destination, settings: Settings) -> Address:
    """Find host and port of a destination.

    Raises UnknownNodeError when a user's callable knows none, fails or answers nonsense, or
    when the port that follows from the name is none.
    """
    node = destination.node
    host = names.split_node(node)[1]
    if destination.host_hint is not None:
        return names.parse_address(destination.host_hint)
    if destination.port_hint is not None:
        return host, destination.port_hint
    configured = settings.remote_tcp_server_ports.get(node)
    if configured is not None:
        return (
            (host, configured) if isinstance(configured, int) else names.parse_address(configured)
        )
    if callable(settings.port_discovery):
        return _ask(settings.port_discovery, node)
    if settings.port_discovery == "stateless":
        return host, _stateless_port(node)
    found = lookup(node) if settings.port_discovery == "local" else None
    return found or (host, settings.tcp_client_port)


def _stateless_port(node: str) -> int:
    name = names.split_node(node)[0]
    digits = re.search(r"[0-9]*\Z", name)
    port = STATELESS_PORT + int((digits and digits[0]) or 0)
    if port > 65535:
        raise UnknownNodeError(
            f"The digits at the end of {node} give port {port}, and ports end at 65535: rename"
            " the node, or set another port_discovery."
        )
    return port


def _ask(discovery: object, node: str) -> Address:
    try:
        answer = discovery(node)  # type: ignore[operator]  # callable, as `find` has seen
    except Exception as error:
        # Whatever a user's function raises, the node's address stays unknown.
        raise UnknownNodeError(
            f"The function port_discovery failed for {node}: {type(error).__name__}: {error}"
        ) from error
    if answer is None:
        raise UnknownNodeError(f"The function port_discovery knows no address of {node}.")
    try:
        if isinstance(answer, str):
            return names.parse_address(answer)
        host, port = answer
        if not isinstance(port, int):
            raise TypeError
        return names.parse_address(f"{names.bracketed(names.check_host(host))}:{port}")
    except (TypeError, ValueError):
        raise UnknownNodeError(
            f"The function port_discovery gave {answer!r} for {node}: it must return"
            ' "host:port", (host, port) or None.'
        ) from None


# ------------------------------------------------------------------ the runtime directory


def runtime_directory() -> Path:
    """Name the directory of this user's nodes; it need not exist."""
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG base directory specification: relative paths are invalid and to be ignored.
    if os.path.isabs(configured):
        return Path(configured, "genrpc")
    owner = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir(), f"genrpc-{owner}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a node's file says."""

    node: str
    host: str
    port: int
    pid: int
    started: str  # the process's start time, "" where the system does not tell it

    @property
    def is_live(self) -> bool:
        """Whether the process that wrote the entry still lives, and is no later one of its pid."""
        return _lives(self.pid) and self.started == _start_time(self.pid)


@dataclass(frozen=True, slots=True)
class Registration:
    """A node's entry in the runtime directory."""

    path: Path
    node: str
    host: str
    port: int
    pid: int

    def withdraw(self) -> None:
        """Remove the entry, unless another node or process has taken it over; never fails."""
        entry = _read(self.path)
        # A forked child inherits the registration, but not the node.
        ours = (self.node, self.host, self.port, os.getpid())
        if entry and (entry.node, entry.host, entry.port, entry.pid) == ours:
            _remove_entry(self.path, entry)


def publish(name: str, host: str, port: int) -> Registration:
    """Let this user's nodes find `name` at `host` and `port` while this process lives.

    An address that stands for all (0.0.0.0, ::) is published as loopback. A name that a live
    process holds is taken over, with a warning. Raises UnsafeConfigurationError when the
    directory is another user's or others may write to it, OSError when it cannot be written.
    """
    node = names.node_name(name)
    directory = _own_directory()
    path = directory / _file_name(node)
    held = _read(path)
    if held and held.is_live and (held.pid, held.port) != (os.getpid(), port):
        log.warning(
            "node %s is already published by process %d at port %d and is now found here, at port"
            " %d: give each node a name of its own",
            *(node, held.pid, held.port, port),
        )
    pid = os.getpid()
    entry = _Entry(node, _LOOPBACK.get(host, host), port, pid, _start_time(pid))
    _write(path, entry)
    return Registration(path, entry.node, entry.host, entry.port, pid)


def lookup(name: str) -> Address | None:
    """Find where a node of this user on this machine listens; None if none of that name lives."""
    node = names.node_name(name)
    directory = runtime_directory()
    if not _is_trusted(directory):
        return None
    entry = _live_entry(directory / _file_name(node))
    return (entry.host, entry.port) if entry and entry.node == node else None


def local_nodes() -> list[str]:
    """List the names of this user's live nodes on this machine, sorted."""
    directory = runtime_directory()
    if not _is_trusted(directory):
        return []
    entries = (_live_entry(path) for path in directory.glob("*.json"))
    return sorted({entry.node for entry in entries if entry})


# ------------------------------------------------------------------ files


def _file_name(node: str) -> str:
    """Name a node's file: readable where it can be, and safe and different for any name."""
    readable = re.sub(r"[^A-Za-z0-9_.@-]", "_", node)[:60].lstrip(".")
    return f"{readable}.{hashlib.sha256(node.encode()).hexdigest()[:16]}.json"


def _own_directory() -> Path:
    """Make the runtime directory where it is missing, and refuse one that is not ours alone."""
    directory = runtime_directory()
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    if not _is_trusted(directory):
        raise UnsafeConfigurationError(
            f"The runtime directory {directory} belongs to another user, others may write to it,"
            " or it is no directory: remove it or run chmod 700 on it, or set XDG_RUNTIME_DIR to a"
            ' directory of your own, or set port_discovery="manual".'
        )
    return directory


def _is_trusted(directory: Path) -> bool:
    """Tell whether the directory is there, is no link, and nobody else could write in it."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    return not hasattr(os, "getuid") or (
        status.st_uid == os.getuid() and not status.st_mode & 0o022
    )


def _write(path: Path, entry: _Entry) -> None:
    """Put the entry in place whole: readers see the old file or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(entry), file)
        os.replace(temporary, path)
    except BaseException:
        _remove(Path(temporary))
        raise


def _read(path: Path) -> _Entry | None:
    """Read an entry; None for a file that is missing or makes no sense."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        entry = _Entry(**said)
        address = names.parse_address(f"{names.bracketed(entry.host)}:{entry.port}")
        known = names.node_name(entry.node) == entry.node and address == (entry.host, entry.port)
        return entry if known and type(entry.pid) is int and entry.pid > 0 else None
    except (OSError, TypeError, ValueError):
        return None


def _live_entry(path: Path) -> _Entry | None:
    """Read an entry that counts; one whose process is gone is removed."""
    entry = _read(path)
    if entry is None or entry.is_live:
        return entry
    _remove_entry(path, entry)
    return None


def _remove_entry(path: Path, unwanted: _Entry) -> None:
    """Remove the file while it holds this entry; one that has come in its place stays."""
    # Moved aside first: between a read and an unlink, another process could publish the name.
    aside = path.with_name(f".old-{os.getpid()}-{threading.get_ident()}")
    try:
        path.rename(aside)
    except OSError:  # somebody was quicker
        return
    if _read(aside) != unwanted:
        with suppress(OSError):  # FileExistsError: a newer one still
            os.link(aside, path)
    _remove(aside)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


# ------------------------------------------------------------------ processes


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there os.kill(pid, 0) would end the process
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _start_time(pid: int) -> str:
    """Tell when a process started, in ticks since boot; "" where it is dead or /proc is silent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # proc(5): fields 3 and 22; the second, the program's name in parentheses, may hold anything.
    state, *fields = text.rpartition(")")[2].split()
    # A zombie has ended, though its parent has not asked how.
    return "" if state in ("Z", "X") else fields[18]
