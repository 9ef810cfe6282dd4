"""Where a node listens, by the kernel's own table, after every documented way to start one."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from nodes import COOKIE
from waiting import SECONDS

LISTEN = "0A"  # of the kernel's states (include/net/tcp_states.h)

pytestmark = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="the kernel has no table of its sockets in /proc"
)


# ---------------------------------------------------------------- the kernel's table


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listened_on(pid: int) -> list[tuple[str, int]]:
    """Addresses and ports at which a process, or one that it started, can be reached."""
    processes = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    inodes: set[str] = set().union(*(sockets_of(each) for each in processes))
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (name.startswith("udp") or fields[3] == LISTEN):
                found.append(address_of(fields[1]))
    return sorted(found)


def address_of(text: str) -> tuple[str, int]:
    """Read an address as the kernel writes it: words of four bytes in the machine's order."""
    words, _, port = text.partition(":")
    packed = b"".join(
        struct.pack("=I", int(words[begin : begin + 8], 16)) for begin in range(0, len(words), 8)
    )
    address = ipaddress.ip_address(packed)
    # gRPC listens on IPv4 by sockets of IPv6.
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def test_the_table_is_read_as_the_kernel_means_it():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        mine = {("127.0.0.1", one.getsockname()[1]), ("::1", other.getsockname()[1])}
        assert mine <= set(listened_on(os.getpid()))


# ---------------------------------------------------------------- the ways to start

READY = "print('ready', flush=True); input()"
GENRPC = (sys.executable, "-m", "genrpc")
ONE = {"GENRPC_TCP_SERVER_PORT": "0"}

# How it is started, with what in the environment, and what it says when it can be called.
IN_PYTHON = {
    "start()": "genrpc.start()",
    "start(name)": "genrpc.start('a@127.0.0.1')",
    "start(), host name": "genrpc.start('a@localhost')",
    "with start()": "genrpc.start().__enter__()",
    "start(settings)": "genrpc.start('a@127.0.0.1', max_calls=5)",
    "Node": "genrpc.Node('a@127.0.0.1', genrpc.Settings(tcp_server_port=0)).start()",
    "asked for": "genrpc.start(listen_address='127.0.0.1', tcp_server_port=0)",
    "IPv6": "genrpc.start(listen_address='::1', tcp_server_port=0)",
    "worker processes": (
        "node = genrpc.start(executor='process');"
        " assert genrpc.call(node.name, 'os', 'getpid') != __import__('os').getpid()"
    ),
    "coroutines": (
        "node = genrpc.start(); import asyncio; genrpc.call(node.name, 'asyncio', 'sleep', [0])"
    ),
    "restarted": "genrpc.start(); genrpc.stop(0); genrpc.start()",
}
SILENT = {
    "a call without a node": "genrpc.call('a@127.0.0.1:1', 'm', 'f')",
    "no port": "genrpc.start(tcp_server_port=None)",
    "stopped": "genrpc.start(); genrpc.stop(0)",
    "only imported": "pass",
}
COMMANDS: dict[str, Sequence[str]] = {
    "serve": ("serve", "--json"),
    "serve a module": ("serve", "math", "--json"),
    "serve by name": ("serve", "--name", "b@127.0.0.1", "--json"),
    "serve on any port": ("serve", "--port", "0", "--json"),
}


@contextmanager
def running(command: Sequence[str], word: str) -> Iterator[int]:
    """Run a program until it says that word; gives its process."""
    environment = {**os.environ, "GENRPC_COOKIE": COOKIE, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            while word not in (line := process.stdout.readline()):
                assert line, "it ended before it was ready"
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            finally:
                process.kill()


def python(statement: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import genrpc; {statement}; {READY}")


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


@pytest.mark.parametrize("way", IN_PYTHON)
def test_node_started_in_python_listens_on_loopback_once(way):
    with running(python(IN_PYTHON[way]), "ready") as pid:
        ((address, port),) = listened_on(pid)
        assert address == ("::1" if way == "IPv6" else "127.0.0.1")
        assert port > 0


@pytest.mark.parametrize("way", SILENT)
def test_what_is_no_serving_node_listens_nowhere(way):
    with running(python(SILENT[way]), "ready") as pid:
        assert listened_on(pid) == []


@pytest.mark.parametrize("way", COMMANDS)
def test_command_serves_on_loopback_once(way):
    with running((*GENRPC, *COMMANDS[way]), "ready") as pid:
        ((address, _),) = listened_on(pid)
        assert address == "127.0.0.1"


def test_demo_listens_on_loopback():
    with running((*GENRPC, "demo"), "") as pid:
        found: list[tuple[str, int]] = []
        deadline = time.monotonic() + SECONDS
        while not found and time.monotonic() < deadline:
            found = seen(pid)
        assert found
        assert all(is_loopback(address) for address, _ in found)


def seen(pid: int) -> list[tuple[str, int]]:
    """As listened_on, for a program whose processes come and go."""
    try:
        return listened_on(pid)
    except (FileNotFoundError, psutil.NoSuchProcess, ProcessLookupError):
        return []


def test_clusters_and_pairs_for_tests_listen_on_loopback():
    statement = (
        "from genrpc import testing; cluster, pair = testing.cluster(2), testing.pair();"
        " cluster.__enter__(); pair.__enter__()"
    )
    with running(python(statement), "ready") as pid:
        found = listened_on(pid)
        assert len(found) == 4
        assert all(is_loopback(address) for address, _ in found)


def test_any_other_address_without_tls_is_refused_and_nothing_listens():
    for address in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        done = subprocess.run(
            [*GENRPC, "serve", "--json"],
            env={**os.environ, "GENRPC_LISTEN_ADDRESS": address, **ONE},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 78
        assert done.stdout == ""
        assert "certfile" in done.stderr
        assert "insecure_listen" in done.stderr


def test_override_listens_where_it_was_told_and_says_so():
    process = subprocess.Popen(
        [*GENRPC, "serve", "--json"],
        env={
            **os.environ,
            "GENRPC_LISTEN_ADDRESS": "0.0.0.0",
            "GENRPC_INSECURE_LISTEN": "true",
            "GENRPC_COOKIE": COOKIE,
            **ONE,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        # All addresses are those of IPv6, too, as gRPC understands it.
        assert listened_on(process.pid) == [("::", port)]
        process.terminate()
        _, told = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert "event=insecure_override" in told
    assert 'detail="0.0.0.0 without TLS"' in told
