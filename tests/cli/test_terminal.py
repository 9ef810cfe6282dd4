"""What is redrawn on a terminal, and Ctrl-C there."""

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import termios

import pytest
from conftest import COMMAND, SECONDS, environment

HAS_RICH = importlib.util.find_spec("rich") is not None
DEAD = "dead@127.0.0.1:1"
CHECK, CROSS = "✓", "✗"


class Terminal:
    """A command on a terminal of its own; `text` is all that it has shown."""

    def __init__(self, *words, **env):
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\0\xa0\0\0\0\0\0")  # 40 lines of 160
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            env=environment(**{"TERM": "xterm", "NO_COLOR": None, "PYTHONUTF8": "1", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def read(self):
        """Read on; False at the end."""
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            data = os.read(self._master, 65536)
            self.text += data.decode(errors="replace")
            return bool(data)
        return False

    def press(self, key):
        os.write(self._master, key)

    def end(self):
        """Read to the end; gives the exit code."""
        while self.read():
            pass
        os.close(self._master)
        return self.process.wait(SECONDS)


@pytest.mark.skipif(not HAS_RICH, reason="needs rich")
def test_multicall_is_a_table_on_a_terminal(node):
    terminal = Terminal("multicall", f"{node.dest},{DEAD}", "genrpc.node")
    assert terminal.end() == 6
    assert f"{CHECK}\x1b[0m  {node.dest}" in terminal.text
    assert f"{CROSS}\x1b[0m  {DEAD}" in terminal.text
    assert "\x1b[?25h" in terminal.text  # the cursor is back


def test_what_nodes_send_is_no_markup(node):
    terminal = Terminal("multicall", node.dest, "cli_targets.echo", "[bold]text[/nothing]")
    assert terminal.end() == 0
    assert "[bold]text[/nothing]" in terminal.text


def test_without_colours_multicall_is_lines(node):
    terminal = Terminal("multicall", node.dest, "genrpc.node", NO_COLOR="1")
    assert terminal.end() == 0
    assert terminal.text == f"{node.dest}  {node.name}\r\n"


@pytest.mark.parametrize("command", ["call", "multicall"])
def test_ctrl_c_cancels_the_calls(node, tmp_path, eventually, command):
    started, cancelled = tmp_path / "started", tmp_path / "cancelled"
    terminal = Terminal(command, node.dest, "cli_targets.wait", started, cancelled)
    eventually(started.exists)
    terminal.press(b"\x03")
    assert terminal.end() == 130
    assert "genrpc: cancelled" in terminal.text
    assert "Traceback" not in terminal.text
    eventually(cancelled.exists)


@pytest.mark.skipif(not HAS_RICH, reason="needs rich")
def test_bench_shows_how_far_it_is(node):
    terminal = Terminal("bench", node.dest, "--seconds", "50ms")
    assert terminal.end() == 0
    assert "\x1b[?25h" in terminal.text
    assert "P500K" in terminal.text


def test_ctrl_c_ends_bench(node):
    terminal = Terminal("bench", node.dest, "--seconds", "30", "-vv")
    while "is open" not in terminal.text:  # the stream, by the log
        assert terminal.read()
    terminal.press(b"\x03")
    assert terminal.end() == 130
    assert "genrpc: cancelled" in terminal.text
