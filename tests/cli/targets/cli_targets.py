"""What the command line's tests call on a node."""

import asyncio
import contextlib
import os
from pathlib import Path

import genrpc


class Awkward:
    """A result that JSON cannot hold."""

    def __repr__(self):
        return "<Awkward>"


class Counter:
    @staticmethod
    def add(a, b):
        return a + b


def echo(*args, **kwargs):
    return kwargs or (args[0] if len(args) == 1 else list(args))


def touch(path):
    Path(path).write_text("touched")


def fails():
    raise LookupError("nothing is here")


def throws():
    raise genrpc.Throw("thrown")


def prints(text):
    print(text)
    os.system(f"echo {text}")


def awkward():
    return Awkward()


def a_generator():
    yield 1


def node_that_acts():
    """The name of the node for which a call of this function goes out."""
    return genrpc.call(genrpc.node(), "genrpc", "node")


async def wait(started, cancelled):
    Path(started).write_text("started")
    try:
        await asyncio.sleep(60)
    finally:
        with contextlib.suppress(OSError):
            Path(cancelled).write_text("cancelled")
