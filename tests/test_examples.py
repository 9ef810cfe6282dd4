"""The examples run as their docstrings say; a user copies them."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import SECONDS

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def command(name, *args):
    return [sys.executable, str(EXAMPLES / name), *args]


def run(name, *args):
    done = subprocess.run(command(name, *args), capture_output=True, text=True, timeout=50)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


class InTheBackground:
    """An example that goes on until it is interrupted; its output, line by line."""

    def __init__(self, name, *args):
        self._process = subprocess.Popen(
            command(name, *args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def line(self):
        """The next line; a deadline ends the process, and so the wait."""
        watchdog = threading.Timer(SECONDS, self._process.kill)
        watchdog.start()
        try:
            return self._process.stdout.readline().rstrip("\n")
        finally:
            watchdog.cancel()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._process.terminate()
        self._process.wait(SECONDS)
        self._process.stdout.close()


def test_every_example_is_documented_with_its_command_and_output():
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert f"python examples/{path.name}" in text
        assert re.search(r"(Output.*|prints):\n", text), path


def test_word_count_counts_the_files_of_a_directory(tmp_path):
    (tmp_path / "one.txt").write_text("red red blue")
    (tmp_path / "two.txt").write_text("blue red green")
    said = run("word_count.py", str(tmp_path), "*.txt").splitlines()
    assert re.fullmatch(r"node0-\w+@127\.0\.0\.1: 1, node1-\w+@127\.0\.0\.1: 1", said[0])
    assert [line.split() for line in said[1:]] == [["red", "3"], ["blue", "2"], ["green", "1"]]


def test_word_count_does_the_work_of_a_node_that_is_not_there(tmp_path):
    (tmp_path / "one.txt").write_text("red red blue")
    said = run("word_count.py", str(tmp_path), "*.txt", "nobody@127.0.0.1:1").splitlines()
    assert said[0] == "this process: 1"
    assert said[1].split() == ["red", "2"]


def test_crawl_finds_all_pages_and_cancels_what_it_does_not_need():
    said = run("crawl.py").splitlines()
    assert said[-1] == "12 pages; 1 request was cancelled, which the site saw"
    titles = {re.search(r"title: (\w+ ?\d*)", line)[1].strip() for line in said[:-1]}
    assert titles == {"Home", *(f"Page {n}" for n in range(1, 12))}


def test_key_value_store_keeps_values_and_tells_watchers_of_changes_in_order():
    with InTheBackground("key_value.py", "serve") as store:
        assert store.line() == "serving as store@127.0.0.1"
        with InTheBackground("key_value.py", "watch") as watcher:
            assert watcher.line() == "watching store@127.0.0.1"
            assert run("key_value.py", "set", "colour=blue", "colour=red") == ""
            assert watcher.line() == "colour: nothing → blue"
            assert watcher.line() == "colour: blue → red"
        assert run("key_value.py", "get", "colour") == "red\n"


def test_key_value_store_that_is_not_there_is_told_in_a_sentence():
    environment = {**os.environ, "GENRPC_TCP_CLIENT_PORT": "1"}
    done = subprocess.run(
        command("key_value.py", "get", "colour"),
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("store@127.0.0.1 did not answer: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [[], ["put"], ["get"]])
def test_key_value_store_explains_itself(args):
    done = subprocess.run(
        command("key_value.py", *args), capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2
    assert "python examples/key_value.py serve" in done.stdout
