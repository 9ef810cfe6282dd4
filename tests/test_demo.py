"""The demo: what it shows is true, fits one screen, and leaves nothing behind."""

import hashlib
import io
import signal
import subprocess
import sys
import threading
from collections import Counter

import psutil
import pytest
from waiting import until

from genrpc import demo

COMMAND = [sys.executable, "-m", "genrpc", "demo"]


@pytest.fixture
def little_input(monkeypatch):
    monkeypatch.setattr(demo, "MAX_INPUT_BYTES", 2_000_000)
    monkeypatch.setattr(demo, "BATCH_BYTES", 100_000)


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ------------------------------------------------------------------ the whole of it


def test_demo_fits_one_screen_and_all_its_results_are_right():
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=58)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in done.stdout
    assert done.stdout.count("the same words and hashes: yes") == 2
    assert "statistics.StatisticsError: mean requires at least one data point" in done.stdout
    assert "× BadTCP('closed'), execution" in done.stdout


def test_interrupted_demo_says_so_and_leaves_no_process():
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        # Its output must be read for it to go on, and it must be past the start of its nodes.
        started, said = threading.Event(), []

        def read():
            for line in process.stdout:
                said.append(line)
                if line.startswith("2."):
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(40), said
        nodes = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        reader.join(20)
        assert process.wait(20) == 130
        complaints = process.stderr.read()
    assert len(nodes) == 3
    assert "Traceback" not in complaints
    assert "Stopped by Ctrl-C" in complaints
    until(lambda: not any(node.is_running() for node in nodes))


def test_wrong_result_is_told_and_makes_the_exit_code_1(little_input, monkeypatch, capsys):
    real = demo.tally

    def wrong(batch):
        return real(batch)._replace(words=0)

    monkeypatch.setattr(demo, "tally", wrong)  # in this process only
    assert demo.main() == 1
    assert capsys.readouterr().out.count("the same words and hashes: NO") == 2


def test_node_that_was_done_before_it_was_killed_is_no_fault(monkeypatch, capsys):
    tallies = [demo.tally([b"some words"])]
    loss = demo.Loss(1, 1, Counter(), 0.0, tallies)
    monkeypatch.setattr(demo, "work_through_a_kill", lambda *args: loss)
    cluster = type("Names", (), {"names": ["node0-x@127.0.0.1", "node1-x@127.0.0.1"]})()
    assert demo._show_kill(demo.Screen(), cluster, [[b""]], demo.Sum.of(tallies))
    assert "node1 answered 1 of its 1 calls" in capsys.readouterr().out


# ------------------------------------------------------------------ its parts


def test_files_are_hashed_and_their_words_counted():
    found = demo.tally([b"import this, import that", b"pass"])
    assert found.words == 5
    assert {word: n for word, n in found.keywords.items() if n} == {b"import": 2, b"pass": 1}
    assert found.hashes[1] == hashlib.sha256(b"pass").hexdigest()


def test_input_is_python_source_within_the_limit(little_input):
    contents = demo.read_input()
    assert 0 < sum(map(len, contents)) <= 2_000_000
    assert any(b"import" in content for content in contents)


def test_batches_hold_all_files_in_order(little_input):
    contents = [bytes(60_000), b"a", bytes(60_000), b"b", b"c"]
    batches = demo.batches_of(contents)
    assert [len(batch) for batch in batches] == [3, 2]
    assert [content for batch in batches for content in batch] == contents


def test_sum_differs_when_a_single_letter_does():
    one, other = (demo.Sum.of([demo.tally([text])]) for text in (b"def a", b"def b"))
    assert one.words == other.words
    assert one != other


def test_colour_is_for_terminals_only(monkeypatch):
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    for output, is_coloured in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", output)
        demo.Screen().step("It begins")
        assert ("\x1b[1m1. It begins\x1b[0m" in output.getvalue()) is is_coloured


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    demo.Screen().verdict(True, "right")
    assert sys.stdout.getvalue() == "   right: yes\n"
