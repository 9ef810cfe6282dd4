"""`genrpc demo`: three nodes do real work, and one of them is killed in the middle of it.

It hashes the source files of Python's standard library and counts their words, here and on the
nodes, compares the two, and prints what happened on one screen. All that is shown was done and
measured in this run. The functions that the nodes run are in this module, for they must be
importable there. For the main thread.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import keyword
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import genrpc
from genrpc import erpc, testing

if TYPE_CHECKING:
    from genrpc.keys import Key

MAX_INPUT_BYTES = 32_000_000
BATCH_BYTES = 500_000
COLUMNS = 100
MAX_TRACEBACK_LINES = 7
CALL_SECONDS = 60.0
"""A node that is gone is noticed at once; this is for a machine that stands still."""

INTERRUPTED = 130

_WORD = re.compile(rb"\w+")
_KEYWORDS = [word.encode() for word in keyword.kwlist]


# ------------------------------------------------------------------ what the nodes run


class Tally(NamedTuple):
    """What is known of a batch of files."""

    node: str
    words: int
    keywords: Counter[bytes]
    hashes: list[str]


def tally(batch: Sequence[bytes]) -> Tally:
    """Hash each file of a batch and count its words."""
    words: Counter[bytes] = Counter()
    for content in batch:
        words.update(_WORD.findall(content))
    keywords = Counter({word: words[word] for word in _KEYWORDS})
    return Tally(
        genrpc.node(),
        sum(words.values()),
        keywords,
        [hashlib.sha256(content).hexdigest() for content in batch],
    )


# ------------------------------------------------------------------ the work


def read_input() -> list[bytes]:
    """The source files of the standard library, up to MAX_INPUT_BYTES."""
    contents, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "dist-packages"}.intersection(path.parts):
            continue
        with contextlib.suppress(OSError):  # a dangling link, say
            content = path.read_bytes()
            total += len(content)
            if total > MAX_INPUT_BYTES:
                break
            contents.append(content)
    return contents


def batches_of(contents: Iterable[bytes]) -> list[list[bytes]]:
    """Files in batches of about BATCH_BYTES: fewer calls, and none that takes long."""
    batches: list[list[bytes]] = []
    room = 0
    for content in contents:
        if room <= 0:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(content)
        room -= len(content)
    return batches


class Sum(NamedTuple):
    """What is known of all files; equal for equal files, whoever did the work."""

    words: int
    keywords: Counter[bytes]
    fingerprint: str

    @staticmethod
    def of(tallies: Sequence[Tally]) -> Sum:
        """Add up tallies, which are in the order of the files."""
        keywords: Counter[bytes] = Counter()
        fingerprint = hashlib.sha256()
        for one in tallies:
            keywords.update(one.keywords)
            fingerprint.update("".join(one.hashes).encode())
        return Sum(sum(one.words for one in tallies), keywords, fingerprint.hexdigest())


class Loss(NamedTuple):
    """What a kill in the middle of the work did to it."""

    calls: int
    answered: int
    failures: Counter[str]
    seconds_to_fail: float
    tallies: list[Tally]


def work_through_a_kill(cluster: testing.Cluster, victim: int, batches: list[list[bytes]]) -> Loss:
    """Spread the batches over the nodes, kill one of them, let the others do what it did not."""
    names = cluster.names
    keys = [_ask(names[i % len(names)], batch) for i, batch in enumerate(batches)]
    of_victim = keys[victim :: len(names)]
    concurrent.futures.wait(of_victim, return_when=concurrent.futures.FIRST_COMPLETED)
    killed_at = time.perf_counter()
    cluster.kill(victim)
    concurrent.futures.wait(of_victim)
    seconds = time.perf_counter() - killed_at
    outcomes = [genrpc.yield_(key) for key in keys]
    lost = [i for i, outcome in enumerate(outcomes) if _is_failure(outcome)]
    failures = Counter(
        f"{type(outcomes[i]).__name__}({outcomes[i].reason!r}), execution {outcomes[i].execution!r}"
        for i in lost
    )
    left = [name for i, name in enumerate(names) if i != victim]
    again = {i: _ask(left[turn % len(left)], batches[i]) for turn, i in enumerate(lost)}
    for i, key in again.items():
        outcomes[i] = key.result()
    answered = sum(not _is_failure(genrpc.yield_(key)) for key in of_victim)
    return Loss(len(of_victim), answered, failures, seconds, outcomes)


def _is_failure(outcome: object) -> bool:
    return isinstance(outcome, (genrpc.BadTCP, genrpc.BadRPC))


def _ask(name: str, batch: list[bytes]) -> Key:
    return genrpc.async_call(name, __name__, "tally", [batch], CALL_SECONDS)


# ------------------------------------------------------------------ the screen


class Screen:
    """Lines of at most COLUMNS characters, each shown at once; coloured if it is a terminal."""

    def __init__(self) -> None:
        self._has_colour = (
            sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )
        self._step = 0

    def line(self, text: str = "", seconds: float | None = None, colour: str = "") -> None:
        """Show a line, with a time at its end."""
        if seconds is not None:
            text = f"{text:<{COLUMNS - 9}}{seconds:7.2f} s"
        text = text[:COLUMNS]
        if colour and self._has_colour:
            text = f"\x1b[{colour}m{text}\x1b[0m"
        print(text, flush=True)

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.line(f"{self._step}. {text}", colour="1")

    def detail(self, text: str, seconds: float | None = None) -> None:
        """Show a line about the step."""
        self.line(f"   {text}", seconds)

    def verdict(self, is_right: bool, text: str) -> None:
        """Show what a comparison gave."""
        self.line(f"   {text}: {'yes' if is_right else 'NO'}", colour="32" if is_right else "31")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long ago it was made."""
        return time.perf_counter() - self._start


def main() -> int:
    """Run the demo; the exit code is 0, 1 if a result was wrong, 130 after Ctrl-C."""
    screen = Screen()
    try:
        return 0 if all(list(_steps(screen))) else 1
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C; the nodes have ended.", file=sys.stderr)
        return INTERRUPTED


def _steps(screen: Screen) -> Iterator[bool]:
    """Go through the demo; yields for each comparison whether it was right."""
    whole = Stopwatch()
    screen.line("genrpc demo: real work on three nodes; all times are measured now", colour="1")
    screen.step("Start three nodes, each a process of its own, and ask all who they are")
    watch = Stopwatch()
    # Whatever the user's environment says: the demo's functions are to be allowed.
    with testing.cluster(3, rpc_module_control="disabled") as cluster:
        _show_nodes(screen, cluster, watch)
        batches, alone = _count_alone(screen)
        yield _count_together(screen, batches, alone)
        _show_closure(screen, cluster.names[0])
        _show_exception(screen, cluster.names[2])
        yield _show_kill(screen, cluster, batches, alone)
    screen.line("All of it, the start and end of the nodes included", whole.seconds, colour="1")
    for line in NEXT:
        screen.line(line)


NEXT = """\
Try next, in two terminals:
  genrpc serve --name a@127.0.0.1
  genrpc call a@127.0.0.1 math.factorial 20
  genrpc ping a@127.0.0.1
In Python: import genrpc; genrpc.call("a@127.0.0.1", "math", "factorial", [20])
""".splitlines()


def _show_nodes(screen: Screen, cluster: testing.Cluster, watch: Stopwatch) -> None:
    answer = genrpc.multicall(cluster.names, "os", "getpid", [])
    screen.detail("  ".join(cluster.names))
    screen.detail(f'multicall(nodes, "os", "getpid", []) → {answer}', watch.seconds)


def _count_alone(screen: Screen) -> tuple[list[list[bytes]], Sum]:
    contents = read_input()
    size = sum(map(len, contents)) / 1e6
    screen.step(
        f"Hash {len(contents):,} files of Python's library, {size:.1f} MB, and count their words"
    )
    batches = batches_of(contents)
    watch = Stopwatch()
    alone = Sum.of([tally(batch) for batch in batches])
    screen.detail("in this process alone", watch.seconds)
    return batches, alone


def _count_together(screen: Screen, batches: list[list[bytes]], alone: Sum) -> bool:
    watch = Stopwatch()
    tallies = genrpc.pmap((__name__, "tally"), [], batches)
    together = Sum.of(tallies)
    screen.detail(
        f"by pmap, in {len(batches)} calls that carry the files; {os.cpu_count()} cores",
        watch.seconds,
    )
    share = Counter(_short(one.node) for one in tallies)
    screen.detail("calls run by " + ", ".join(f"{name}: {n}" for name, n in sorted(share.items())))
    common = ", ".join(f"{n:,} × {word.decode()}" for word, n in together.keywords.most_common(3))
    screen.detail(f"{together.words:,} words, {common}; hash of all {together.fingerprint[:16]}…")
    screen.verdict(together == alone, "both ways the same words and hashes")
    return together == alone


def _show_closure(screen: Screen, name: str) -> None:
    screen.step("A closure runs there, and takes along what it uses from here")
    word = "genrpc"
    text = Path(__file__).read_text(encoding="utf-8")
    found = erpc.run(name, lambda text: (text.count(word), os.getpid()), text)
    screen.detail(f"word = {word!r}, text is the source of this demo")
    screen.detail(f"erpc.run(node, lambda text: (text.count(word), os.getpid()), text) → {found}")


def _show_exception(screen: Screen, name: str) -> None:
    screen.step("An exception comes back, with the traceback from there")
    outcome = genrpc.call(name, "statistics", "mean", [[]])
    kind, reason = type(outcome).__name__, type(outcome.reason).__name__
    screen.detail(f'call(node, "statistics", "mean", [[]]) returns {kind}({reason}(…));')
    try:
        erpc.call(name, "statistics", "mean", [[]])
    except genrpc.RemoteError as error:
        screen.detail(f"erpc.call raises {type(error).__name__}, which says:")
        for line in str(error).splitlines()[:MAX_TRACEBACK_LINES]:
            screen.line(f"     {line}", colour="2")


def _show_kill(
    screen: Screen, cluster: testing.Cluster, batches: list[list[bytes]], alone: Sum
) -> bool:
    victim = 1
    name = _short(cluster.names[victim])
    screen.step(f"The work of 2 once more, by async_call; in the middle of it, kill -9 {name}")
    watch = Stopwatch()
    loss = work_through_a_kill(cluster, victim, batches)
    screen.detail(f"{name} answered {loss.answered} of its {loss.calls} calls; the others:")
    for failure, times in loss.failures.most_common():
        screen.detail(f"  {times} × {failure}")
    if loss.failures:
        screen.detail(f"  the last of them {loss.seconds_to_fail * 1000:.0f} ms after the kill")
    screen.detail("what was lost was asked of the other nodes again", watch.seconds)
    together = Sum.of(loss.tallies)
    screen.verdict(together == alone, "still the same words and hashes")
    return together == alone


def _short(name: str) -> str:
    """A node's name for people: without its random letters."""
    return name.partition("-")[0]
