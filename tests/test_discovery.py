"""From a node's name to its address; the runtime directory of this user's nodes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc import discovery
from genrpc.discovery import UnknownNodeError, find, is_quick, local_nodes, lookup, publish
from genrpc.errors import BadTCP, UnsafeConfigurationError
from genrpc.names import Destination, parse_destination
from genrpc.settings import Settings

posix_only = pytest.mark.skipif(os.name != "posix", reason="users and modes are those of POSIX")
proc_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own; gives genrpc's folder in it, not yet made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "genrpc"


@contextmanager
def process_that_published(name: str, port: int) -> Iterator[subprocess.Popen]:
    code = (
        "import sys; from genrpc.discovery import publish\n"
        "publish(sys.argv[1], '127.0.0.1', int(sys.argv[2])); print('done', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, name, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def address_of(text: str, **settings: object) -> tuple[str, int]:
    return find(parse_destination(text), Settings(**settings))


# ---------------------------------------------------------------- the order of sources


def test_hint_goes_before_all_else():
    settings = {"remote_tcp_server_ports": {"a@host": 1}, "port_discovery": lambda node: "x:2"}
    assert address_of("a@host:7", **settings) == ("host", 7)


def test_host_hint_goes_before_the_port_hint():
    destination = Destination("a@host", host_hint="[::1]:9", port_hint=7)
    assert find(destination, Settings()) == ("::1", 9)


def test_configured_port_goes_before_discovery():
    settings = {"remote_tcp_server_ports": {"a@host": 1, "b@host": "other:2"}}
    settings |= {"port_discovery": lambda node: "x:2"}
    assert address_of("a@host", **settings) == ("host", 1)
    assert address_of("b@host", **settings) == ("other", 2)
    assert address_of("c@host", **settings) == ("x", 2)


def test_published_node_goes_before_the_client_port():
    publish("a@127.0.0.1", "127.0.0.1", 4567)
    assert address_of("a@127.0.0.1", tcp_client_port=11) == ("127.0.0.1", 4567)
    assert address_of("b@127.0.0.1", tcp_client_port=11) == ("127.0.0.1", 11)


def test_manual_discovery_looks_nowhere():
    publish("a@127.0.0.1", "127.0.0.1", 4567)
    settings = {"port_discovery": "manual", "tcp_client_port": 11}
    assert address_of("a@127.0.0.1", **settings) == ("127.0.0.1", 11)


def test_ipv6_host_loses_its_brackets():
    assert address_of("a@[::1]") == ("::1", 5369)


@pytest.mark.parametrize(
    ("name", "port"),
    [("a@host7", 5370), ("a_12@host", 5382), ("a1b@host", 5370), ("a007@host", 5377)],
)
def test_stateless_port_is_in_the_name(name, port):
    assert address_of(name, port_discovery="stateless")[1] == port


def test_stateless_port_beyond_all_ports_is_an_unknown_node():
    assert address_of("a60165@h", port_discovery="stateless") == ("h", 65535)
    with pytest.raises(UnknownNodeError, match="65536"):
        address_of("a60166@h", port_discovery="stateless")


# ---------------------------------------------------------------- a user's function


@pytest.mark.parametrize("answer", ["there:5", ("there", 5), ["there", 5]])
def test_function_tells_the_address(answer):
    asked = []

    def discover(node):
        asked.append(node)
        return answer

    assert address_of("a@host", port_discovery=discover) == ("there", 5)
    assert asked == ["a@host"]


def test_function_may_give_an_ipv6_address():
    assert address_of("a@host", port_discovery=lambda node: ("::1", 5)) == ("::1", 5)


def test_function_that_gives_none_makes_the_node_unknown():
    with pytest.raises(UnknownNodeError, match="knows no address of a@host") as caught:
        address_of("a@host", port_discovery=lambda node: None)
    assert caught.value.value == BadTCP("nxdomain")
    assert caught.value.execution == "not_started"


@pytest.mark.parametrize(
    "answer",
    [5, "host", "host:x", ("h",), ("h", "5"), ("h", 0), ("h", 70000), (5, 5), ("h:1", 5), "", b"h"],
)
def test_function_that_gives_nonsense_makes_the_node_unknown(answer):
    with pytest.raises(UnknownNodeError, match="must return") as caught:
        address_of("a@host", port_discovery=lambda node: answer)
    assert repr(answer) in str(caught.value)


def test_function_that_raises_makes_the_node_unknown():
    def discover(node):
        raise LookupError("registry is down")

    with pytest.raises(UnknownNodeError, match="LookupError: registry is down") as caught:
        address_of("a@host", port_discovery=discover)
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize(
    ("destination", "quick"),
    [
        (Destination("a@host"), False),
        (Destination("known@host"), True),
        (Destination("a@host", port_hint=5), True),
        (Destination("a@host", host_hint="h:5"), True),
    ],
)
def test_finding_is_quick_where_no_user_code_runs(destination, quick):
    settings = Settings(
        port_discovery=lambda node: "h:5", remote_tcp_server_ports={"known@host": 1}
    )
    assert is_quick(destination, settings) is quick
    assert is_quick(destination, Settings())


# ---------------------------------------------------------------- publishing and looking up


def test_published_node_is_found_until_it_is_withdrawn():
    registration = publish("a@127.0.0.1", "127.0.0.1", 4567)
    assert lookup("a@127.0.0.1") == ("127.0.0.1", 4567)
    assert local_nodes() == ["a@127.0.0.1"]
    registration.withdraw()
    registration.withdraw()
    assert lookup("a@127.0.0.1") is None
    assert local_nodes() == []


def test_nothing_is_found_where_nothing_was_published(runtime):
    assert lookup("a@127.0.0.1") is None
    assert local_nodes() == []
    assert not runtime.exists()


def test_local_nodes_are_sorted():
    for name in ("c@h", "a@h", "b@h"):
        publish(name, "127.0.0.1", 4567)
    assert local_nodes() == ["a@h", "b@h", "c@h"]


@pytest.mark.parametrize(
    ("host", "found"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1"), ("localhost", "localhost")],
)
def test_address_for_all_is_published_as_loopback(host, found):
    publish("a@127.0.0.1", host, 4567)
    assert lookup("a@127.0.0.1") == (found, 4567)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_names_of_any_kind_have_safe_and_different_files(one, other):
    first, second = discovery._file_name(f"{one}@h"), discovery._file_name(f"{other}@h")
    assert (first == second) is (one == other)
    assert os.path.basename(first) == first
    assert first.isascii()
    assert not first.startswith(".")
    assert len(first) < 100


def test_long_names_are_published_too():
    name = "ñ" * 200 + "@127.0.0.1"
    publish(name, "127.0.0.1", 4567)
    assert lookup(name) == ("127.0.0.1", 4567)
    assert local_nodes() == [name]


@posix_only
def test_directory_and_file_are_private(runtime):
    registration = publish("a@h", "127.0.0.1", 4567)
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert registration.path.stat().st_mode & 0o777 == 0o600


def test_only_the_entry_is_left_in_the_directory(runtime):
    registration = publish("a@h", "127.0.0.1", 4567)
    assert list(runtime.iterdir()) == [registration.path]
    said = json.loads(registration.path.read_text())
    assert (said["node"], said["port"], said["pid"]) == ("a@h", 4567, os.getpid())
    registration.withdraw()
    assert list(runtime.iterdir()) == []


def test_failed_write_leaves_no_trace(runtime, monkeypatch):
    publish("a@h", "127.0.0.1", 4567).withdraw()

    def full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        publish("a@h", "127.0.0.1", 4567)
    assert list(runtime.iterdir()) == []


# ---------------------------------------------------------------- other processes


def test_node_of_another_process_is_found():
    with process_that_published("other@h", 4568):
        assert lookup("other@h") == ("127.0.0.1", 4568)


@posix_only
def test_entry_of_a_killed_process_is_removed(runtime):
    with process_that_published("other@h", 4568) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert lookup("other@h") is None
        assert list(runtime.iterdir()) == []


@proc_only
def test_zombie_is_dead():
    with process_that_published("other@h", 4568) as process:
        process.send_signal(signal.SIGKILL)
        # Waits for the end, but leaves the process to be asked for its status: a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert local_nodes() == []


@proc_only
def test_entry_of_a_reused_pid_is_removed(runtime):
    registration = publish("a@h", "127.0.0.1", 4567)
    said = json.loads(registration.path.read_text())
    registration.path.write_text(json.dumps(said | {"started": "1"}))
    assert lookup("a@h") is None
    assert list(runtime.iterdir()) == []


def test_name_held_by_another_live_process_is_taken_over(caplog):
    with process_that_published("a@h", 4568) as process:
        mine = publish("a@h", "127.0.0.1", 4567)
        assert lookup("a@h") == ("127.0.0.1", 4567)
        assert f"process {process.pid}" in caplog.text
        mine.withdraw()


def test_what_was_taken_over_is_not_withdrawn():
    mine = publish("a@h", "127.0.0.1", 4567)
    with process_that_published("a@h", 4568):
        mine.withdraw()
        assert lookup("a@h") == ("127.0.0.1", 4568)


def test_second_node_of_this_process_keeps_its_entry():
    first = publish("a@h", "127.0.0.1", 4567)
    publish("a@h", "127.0.0.1", 4568)
    first.withdraw()
    assert lookup("a@h") == ("127.0.0.1", 4568)


def test_publishing_the_same_again_is_no_news(caplog):
    publish("a@h", "127.0.0.1", 4567)
    publish("a@h", "127.0.0.1", 4567)
    assert caplog.text == ""


def test_forked_child_does_not_withdraw_the_nodes_entry(monkeypatch):
    registration = publish("a@h", "127.0.0.1", 4567)
    monkeypatch.setattr(os, "getpid", lambda: registration.pid + 1)
    registration.withdraw()
    monkeypatch.undo()
    assert registration.path.exists()


def test_newer_entry_survives_the_removal_of_an_old_one():
    old = publish("a@h", "127.0.0.1", 4567)
    entry = discovery._read(old.path)
    assert entry is not None
    publish("a@h", "127.0.0.1", 4568)
    discovery._remove_entry(old.path, entry)
    assert lookup("a@h") == ("127.0.0.1", 4568)
    assert list(old.path.parent.iterdir()) == [old.path]


def test_removing_what_somebody_else_removed_is_no_failure():
    registration = publish("a@h", "127.0.0.1", 4567)
    entry = discovery._read(registration.path)
    assert entry is not None
    registration.path.unlink()
    discovery._remove_entry(registration.path, entry)
    assert not registration.path.exists()


# ---------------------------------------------------------------- what is not to be trusted


@posix_only
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_directory_that_others_can_write_is_refused(runtime, mode):
    publish("a@h", "127.0.0.1", 4567)
    runtime.chmod(mode)
    assert lookup("a@h") is None
    assert local_nodes() == []
    with pytest.raises(UnsafeConfigurationError, match="chmod 700"):
        publish("a@h", "127.0.0.1", 4567)


@posix_only
def test_directory_of_another_user_is_refused(runtime, monkeypatch):
    publish("a@h", "127.0.0.1", 4567)
    monkeypatch.setattr(os, "getuid", lambda: runtime.stat().st_uid + 1)
    assert lookup("a@h") is None
    with pytest.raises(UnsafeConfigurationError, match="another user"):
        publish("a@h", "127.0.0.1", 4567)


@posix_only
def test_link_in_place_of_the_directory_is_refused(runtime, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    runtime.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeConfigurationError, match="runtime directory"):
        publish("a@h", "127.0.0.1", 4567)


def test_file_in_place_of_the_directory_is_refused(runtime):
    runtime.write_text("")
    assert lookup("a@h") is None
    with pytest.raises(UnsafeConfigurationError, match="no directory"):
        publish("a@h", "127.0.0.1", 4567)


@pytest.mark.parametrize(
    "change",
    [
        *({"port": 0}, {"port": "4567"}, {"port": None}, {"host": ""}, {"host": 5}, {"pid": -1}),
        *({"pid": "1"}, {"node": "b c@h"}, {"node": 5}, {"more": 1}),
    ],
)
def test_entry_that_makes_no_sense_is_ignored(change):
    registration = publish("a@h", "127.0.0.1", 4567)
    said = json.loads(registration.path.read_text())
    registration.path.write_text(json.dumps(said | change))
    assert lookup("a@h") is None
    assert local_nodes() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b"null"])
def test_file_that_is_no_entry_is_ignored(content):
    registration = publish("a@h", "127.0.0.1", 4567)
    registration.path.write_bytes(content)
    assert lookup("a@h") is None
    registration.withdraw()
    assert registration.path.exists()


def test_entry_under_another_nodes_file_is_ignored(runtime):
    registration = publish("a@h", "127.0.0.1", 4567)
    registration.path.rename(runtime / discovery._file_name("b@h"))
    assert lookup("b@h") is None


@pytest.mark.parametrize("configured", ["", "relative/path"])
def test_without_a_runtime_directory_the_temporary_one_serves(monkeypatch, configured):
    monkeypatch.setenv("XDG_RUNTIME_DIR", configured)
    directory = discovery.runtime_directory()
    assert directory.parent == Path(tempfile.gettempdir())
    assert directory.name.startswith("genrpc-")


# ---------------------------------------------------------------- processes


def test_own_process_lives():
    assert discovery._lives(os.getpid())


@posix_only
def test_process_of_another_user_lives(monkeypatch):
    def forbidden(pid, sent):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert discovery._lives(1)


def test_pid_beyond_all_pids_is_dead():
    assert not discovery._lives(2**70)


def test_start_time_of_no_process_is_empty():
    assert discovery._start_time(2**70) == ""
