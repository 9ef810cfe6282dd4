"""A tiny key-value service that tells its watchers what changes.

Shows: a node that lets others call three functions and nothing else; ordered_cast, which keeps the
order of changes without waiting for each; abcast to a handler registered on other nodes.

    python examples/key_value.py serve                       # in one terminal, until Ctrl-C
    python examples/key_value.py watch                       # in another, until Ctrl-C
    python examples/key_value.py set colour=blue colour=red  # in a third
    python examples/key_value.py get colour

The watcher prints:

    watching store@127.0.0.1
    colour: nothing → blue
    colour: blue → red

and the last command prints `red`. The store is in memory, and the nodes find each other by name
because they are one user's on one machine.
"""

from __future__ import annotations

import os
import sys
import threading

import genrpc

STORE = "store@127.0.0.1"
MODULE = "key_value"  # this file, as the node imports it

# ------------------------------------------------------------------ what the store runs

values: dict[str, str] = {}
watchers: list[str] = []


def put(name: str, value: str) -> None:
    former, values[name] = values.get(name), value
    genrpc.abcast(watchers, "changes", f"{name}: {former or 'nothing'} → {value}")


def get(name: str) -> str | None:
    return values.get(name)


def watch(node: str) -> list[str]:
    if node not in watchers:
        watchers.append(node)
    return watchers


# ------------------------------------------------------------------ the four commands


def serve() -> None:
    allowed = [f"{MODULE}:{function.__name__}" for function in (put, get, watch)]
    with genrpc.start(STORE, rpc_module_control="whitelist", rpc_module_list=allowed):
        print(f"serving as {STORE}", flush=True)
        threading.Event().wait()


def show_changes() -> None:
    """Let the store tell this node what changes, and print it."""
    allowed = ["genrpc:deliver"]  # what abcast calls here
    name = f"watcher-{os.getpid()}-w@127.0.0.1"
    with genrpc.start(name, rpc_module_control="whitelist", rpc_module_list=allowed):
        genrpc.register("changes", lambda change: print(change, flush=True))
        genrpc.erpc.call(STORE, MODULE, "watch", [name])
        print(f"watching {STORE}", flush=True)
        threading.Event().wait()


def set_values(pairs: list[str]) -> None:
    for pair in pairs:
        name, _, value = pair.partition("=")
        # One after the other for each name; names do not wait for each other.
        genrpc.ordered_cast((STORE, name), MODULE, "put", [name, value])
    genrpc.stop()  # sends what was cast


def main() -> int:
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["watch"]:
            show_changes()
        case ["set", *pairs]:
            set_values(pairs)
        case ["get", name]:
            print(genrpc.erpc.call(STORE, MODULE, "get", [name]))
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except genrpc.CallError as error:
        sys.exit(f"{STORE} did not answer: {error}")
