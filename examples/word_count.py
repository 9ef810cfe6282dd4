"""Count the words of a directory's text files on several nodes.

Shows: nodes that need nothing but genrpc, for the function travels with the call; async_call with
`as_completed`; what to do with a call that failed.

    python examples/word_count.py                    # the source of Python's library, 3 own nodes
    python examples/word_count.py DIRECTORY PATTERN  # other files, say: docs '*.md'
    python examples/word_count.py DIRECTORY PATTERN a@10.0.0.7,b@10.0.0.8   # nodes that run there

Output, with the number of files that each node counted:

    node0-arrjnkzaym@127.0.0.1: 56, node1-uzvbdkgoim@127.0.0.1: 56, node2-tekrgjddeb@127.0.0.1: 56
    self           22,481
    the            12,444
    if             12,277
    …
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from pathlib import Path

import genrpc
import genrpc.testing


def count_words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W\d_]{2,}", text))


def count_files(files: Sequence[Path], nodes: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """The words of all files, and the number of files by node."""
    asked = {}
    for number, file in enumerate(files):
        node = nodes[number % len(nodes)]
        args = [count_words, [file.read_text(errors="replace")]]
        asked[genrpc.async_call(node, "genrpc", "apply", args)] = file, node
    words, shares = Counter(), Counter()
    for key in as_completed(asked):
        file, node = asked[key]
        outcome = genrpc.yield_(key)
        if isinstance(outcome, genrpc.BadTCP):  # the node is gone: do it here
            node, outcome = "this process", count_words(file.read_text(errors="replace"))
        if isinstance(outcome, genrpc.BadRPC):  # the function failed
            print(f"{file} was not counted: {outcome}", file=sys.stderr)
            continue
        words += outcome
        shares[node] += 1
    return words, shares


def main() -> None:
    directory, pattern, nodes, *_ = [*sys.argv[1:], *[""] * 3]
    files = sorted(Path(directory or sysconfig.get_path("stdlib")).glob(pattern or "*.py"))
    with ExitStack() as stack:
        names = nodes.split(",") if nodes else stack.enter_context(genrpc.testing.cluster(3)).names
        words, shares = count_files(files, names)
    print(", ".join(f"{name}: {n}" for name, n in sorted(shares.items())))
    for word, times in words.most_common(10):
        print(f"{word:12}{times:9,}")


if __name__ == "__main__":
    main()
